//! Borrowed JSON: one object's members and one array's elements as raw tokens, and text written as JSON.
//!
//! This module never builds a tree of values, and never recurses into what a peer sent.

use std::borrow::Cow;
use std::fmt;

use arrayvec::ArrayVec;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Elements of an array that are kept; later ones are skipped. `mining.submit` has six, and nothing that is
/// asked of a server has more.
pub(super) const MAX_ELEMENTS: usize = 8;

/// The members of a JSON-RPC object that mean something. Of a repeated key the last one counts, other keys are
/// skipped.
#[derive(Debug, Default)]
pub(super) struct Envelope<'a> {
    pub(super) id: Option<&'a RawValue>,
    pub(super) method: Option<&'a RawValue>,
    pub(super) params: Option<&'a RawValue>,
    pub(super) result: Option<&'a RawValue>,
    pub(super) error: Option<&'a RawValue>,
}

impl<'de> Deserialize<'de> for Envelope<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EnvelopeVisitor)
    }
}

struct EnvelopeVisitor;

impl<'de> Visitor<'de> for EnvelopeVisitor {
    type Value = Envelope<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON-RPC object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Envelope<'de>, A::Error> {
        let mut envelope = Envelope::default();
        while let Some(key) = map.next_key::<Key>()? {
            let member = match key {
                Key::Id => &mut envelope.id,
                Key::Method => &mut envelope.method,
                Key::Params => &mut envelope.params,
                Key::Result => &mut envelope.result,
                Key::Error => &mut envelope.error,
                Key::Other => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *member = Some(map.next_value()?);
        }
        Ok(envelope)
    }
}

enum Key {
    Id,
    Method,
    Params,
    Result,
    Error,
    Other,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl Visitor<'_> for KeyVisitor {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E>(self, key: &str) -> Result<Key, E> {
                Ok(match key {
                    "id" => Key::Id,
                    "method" => Key::Method,
                    "params" => Key::Params,
                    "result" => Key::Result,
                    "error" => Key::Error,
                    _ => Key::Other,
                })
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

/// The first [`MAX_ELEMENTS`] elements of an array as raw tokens.
#[derive(Debug, Default)]
pub(super) struct Elements<'a>(ArrayVec<&'a RawValue, MAX_ELEMENTS>);

impl<'a> Elements<'a> {
    /// The elements of `value`; none for anything that is no array.
    pub(super) fn of(value: Option<&'a RawValue>) -> Self {
        value.and_then(|value| serde_json::from_str(value.get()).ok()).unwrap_or_default()
    }

    /// The element at `index`, unless it is missing or null.
    pub(super) fn get(&self, index: usize) -> Option<&'a RawValue> {
        self.0.get(index).copied().filter(|value| value.get() != "null")
    }

    /// The text at `index`, unless it is missing or no string.
    pub(super) fn text(&self, index: usize) -> Option<Cow<'a, str>> {
        self.get(index).and_then(text)
    }

    /// All elements that were kept.
    pub(super) fn iter(&self) -> impl Iterator<Item = &'a RawValue> {
        self.0.iter().copied()
    }
}

impl<'de> Deserialize<'de> for Elements<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ElementsVisitor;
        impl<'de> Visitor<'de> for ElementsVisitor {
            type Value = Elements<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Elements<'de>, A::Error> {
                let mut elements = ArrayVec::new();
                while !elements.is_full() {
                    match seq.next_element()? {
                        Some(element) => elements.push(element),
                        None => return Ok(Elements(elements)),
                    }
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Elements(elements))
            }
        }
        deserializer.deserialize_seq(ElementsVisitor)
    }
}

/// The last member `name` of an object; `None` when there is none, or `value` is no object.
pub(super) fn member<'a>(value: &'a RawValue, name: &str) -> Option<&'a RawValue> {
    struct MemberVisitor<'n>(&'n str);
    impl<'de> Visitor<'de> for MemberVisitor<'_> {
        type Value = Option<&'de RawValue>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while let Some(is_wanted) = map.next_key_seed(KeyIs(self.0))? {
                let value = map.next_value()?;
                if is_wanted {
                    found = Some(value);
                }
            }
            Ok(found)
        }
    }
    serde_json::Deserializer::from_str(value.get()).deserialize_map(MemberVisitor(name)).ok().flatten()
}

/// Compares a key, so that none is copied.
struct KeyIs<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for KeyIs<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyIs<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

/// The text of a JSON string, borrowed when it has no escapes. `None` for any other value and for escapes that
/// are no text (a lone surrogate).
pub(super) fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    let inner = value.get().strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        return serde_json::from_str(value.get()).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(inner))
}

/// Appends `text` as a JSON string, quotes included.
pub(super) fn write_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for character in text.bytes() {
        match character {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', character]),
            0..0x20 | 0x7f => {
                out.extend_from_slice(b"\\u00");
                super::hexadecimal::write(out, &[character]);
            }
            _ => out.push(character),
        }
    }
    out.push(b'"');
}

/// Appends what `arguments` print.
pub(super) fn write_plain(out: &mut Vec<u8>, arguments: fmt::Arguments<'_>) {
    struct Appender<'a>(&'a mut Vec<u8>);
    impl fmt::Write for Appender<'_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.extend_from_slice(text.as_bytes());
            Ok(())
        }
    }
    fmt::write(&mut Appender(out), arguments).expect("appending to memory has no failure of its own");
}
