//! The part of JSON Schema that the OpenAPI document uses. A keyword that is not known here fails, so that nothing in
//! the document goes unchecked.

use serde_json::Value;

/// Holds `value` against `schema`, a part of `document`; what is wrong, with where.
pub(super) fn check(document: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    walk(document, schema, value, at, &mut wrong);
    wrong
}

fn walk(document: &Value, schema: &Value, value: &Value, at: &str, wrong: &mut Vec<String>) {
    let keywords = schema.as_object().expect("a schema is an object");
    for (keyword, rule) in keywords {
        match keyword.as_str() {
            "description" | "example" => {}
            "$ref" => {
                let target = rule.as_str().and_then(|path| path.strip_prefix('#')).expect("a reference");
                let target = document.pointer(target).unwrap_or_else(|| panic!("{rule} is there"));
                walk(document, target, value, at, wrong);
            }
            "type" => {
                let is_one = match rule {
                    Value::String(name) => is_type(name, value),
                    Value::Array(names) => {
                        names.iter().filter_map(Value::as_str).any(|name| is_type(name, value))
                    }
                    _ => panic!("{at}: a type is a name or a list of names"),
                };
                if !is_one {
                    wrong.push(format!("{at}: {value} is not of the type {rule}"));
                }
            }
            "enum" => {
                if !rule.as_array().expect("a list").contains(value) {
                    wrong.push(format!("{at}: {value} is not one of {rule}"));
                }
            }
            "minimum" => {
                if value.as_f64().is_some_and(|number| number < rule.as_f64().expect("a number")) {
                    wrong.push(format!("{at}: {value} is below {rule}"));
                }
            }
            "format" => {
                assert_eq!(rule, "date-time", "{at}");
                if value.as_str().is_some_and(|text| humantime::parse_rfc3339(text).is_err()) {
                    wrong.push(format!("{at}: {value} is no time"));
                }
            }
            "anyOf" => {
                let choices = rule.as_array().expect("a list");
                let fits = |choice: &&Value| check(document, choice, value, at).is_empty();
                if !choices.iter().any(|choice| fits(&choice)) {
                    let first = check(document, &choices[0], value, at);
                    wrong.push(format!("{at}: fits none of {} choices; the first: {first:?}", choices.len()));
                }
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    walk(document, rule, item, &format!("{at}[{index}]"), wrong);
                }
            }
            "properties" | "required" | "additionalProperties" => {}
            other => panic!("{at}: the keyword {other} is not checked by this test"),
        }
    }
    if let Some(entries) = value.as_object() {
        members(document, schema, entries, at, wrong);
    }
}

fn members(
    document: &Value,
    schema: &Value,
    entries: &serde_json::Map<String, Value>,
    at: &str,
    wrong: &mut Vec<String>,
) {
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !entries.contains_key(name) {
            wrong.push(format!("{at}: {name} is missing"));
        }
    }
    for (name, value) in entries {
        let at = format!("{at}.{name}");
        match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, Value::Bool(false)) => wrong.push(format!("{at}: is not in the document")),
            (Value::Null, Value::Null) => {}
            (Value::Null, others) => walk(document, others, value, &at, wrong),
            (schema, _) => walk(document, schema, value, &at, wrong),
        }
    }
}

fn is_type(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        // Whole numbers beyond 64 bits are read as floats.
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        other => panic!("there is no type {other}"),
    }
}

#[test]
fn a_value_that_does_not_fit_is_found() {
    let document = serde_json::json!({ "a": { "type": "object", "properties": { "n": { "type": ["integer", "null"], "minimum": 0 } },
        "required": ["n"], "additionalProperties": false } });
    let schema = serde_json::json!({ "type": "array", "items": { "$ref": "#/a" } });
    let check = |value| check(&document, &schema, &value, "x");
    assert_eq!(check(serde_json::json!([{ "n": 1 }, { "n": null }])), Vec::<String>::new());
    for wrong in [
        serde_json::json!({}),
        serde_json::json!([{}]),
        serde_json::json!([{ "n": 1.5 }]),
        serde_json::json!([{ "n": -1 }]),
        serde_json::json!([{ "n": 1, "m": 2 }]),
    ] {
        assert_eq!(check(wrong.clone()).len(), 1, "{wrong}");
    }
}
