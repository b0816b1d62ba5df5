//! SV1 bytes of a stranger: cut into lines, read as requests, answered; and the same bytes read as a miner reads a
//! pool's.
//!
//! The first four bytes of an input say how the rest arrives, so that seeds stay readable: one of options, three of
//! chunk lengths.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use stratum::sv1::client::{ServerLine, Solution};
use stratum::sv1::line::{LineBuffer, LineError, MAX_LINE_BYTES};
use stratum::sv1::render::{self, ErrorCode};
use stratum::sv1::request::{Call, RawId, Request, RequestError, Submit, password_options};

/// A limit that inputs of ordinary length reach.
const SHORT_LINE: usize = 200;

fuzz_target!(|data: &[u8]| {
    let Some((control, bytes)) = data.split_first_chunk::<4>() else { return };
    let limit = if control[0] & 1 == 0 { MAX_LINE_BYTES } else { SHORT_LINE };
    let buffer = || match control[0] & 2 {
        0 => LineBuffer::new(limit),
        _ => LineBuffer::behind_proxy(limit),
    };
    let (whole, whole_error) = lines(buffer(), std::iter::once(bytes));
    let (pieces, pieces_error) = lines(buffer(), chunks(bytes, &control[1..]));
    assert_eq!(whole, pieces, "lines depend on how their bytes arrive");
    assert_eq!(whole_error, pieces_error);
    for line in &whole {
        assert!(!line.is_empty() && line.len() <= limit && !line.contains(&b'\n'));
        read_request(line);
        read_server_line(line);
    }
});

fn chunks<'a>(bytes: &'a [u8], lengths: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = bytes;
    lengths.iter().cycle().map_while(move |length| {
        if rest.is_empty() {
            return None;
        }
        let (chunk, more) = rest.split_at((usize::from(*length) + 1).min(rest.len()));
        rest = more;
        Some(chunk)
    })
}

fn lines<'a>(
    mut buffer: LineBuffer,
    chunks: impl Iterator<Item = &'a [u8]>,
) -> (Vec<Vec<u8>>, Option<LineError>) {
    let mut lines = Vec::new();
    for mut chunk in chunks {
        loop {
            match buffer.next_line(&mut chunk) {
                Ok(Some(line)) => lines.push(line.to_vec()),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(buffer.next_line(&mut &[][..]), Err(error), "a failure is for good");
                    assert_eq!(buffer.unread(), 0, "a failed connection holds no memory");
                    return (lines, Some(error));
                }
            }
        }
    }
    (lines, None)
}

fn read_request(line: &[u8]) {
    let request = Request::parse(line);
    assert_eq!(request, Request::parse_any(line), "the short way for submissions reads something else");
    match request {
        Ok(request) => {
            check_answers(request.id);
            match &request.call {
                Call::Submit(submit) => round_trip(submit),
                Call::Authorize { user, password } => {
                    assert!(user.len() <= 255 && password.len() <= 255);
                    let asked = password_options(password).difficulty;
                    assert!(asked.is_none_or(|difficulty| difficulty.is_finite() && difficulty > 0.0));
                }
                Call::SuggestDifficulty(difficulty) => assert!(difficulty.is_finite() && *difficulty > 0.0),
                _ => (),
            }
        }
        Err(RequestError::BadParams { id, .. }) => check_answers(id),
        Err(RequestError::NotJson | RequestError::IdTooLong) => (),
    }
}

/// Whatever the id is, its answer is one line of JSON that echoes it.
fn check_answers(id: RawId<'_>) {
    let mut out = Vec::new();
    render::boolean(&mut out, id, true);
    render::error_with(&mut out, id, ErrorCode::Other, "some \"text\"");
    let Some(token) = id.token() else { return assert!(out.is_empty(), "nothing may be answered") };
    let answers: Vec<&[u8]> = out.split_inclusive(|byte| *byte == b'\n').collect();
    assert_eq!(answers.len(), 2);
    for answer in answers {
        serde_json::from_slice::<IgnoredAny>(answer).expect("JSON");
        assert!(answer.starts_with(format!("{{\"id\":{token},").as_bytes()), "the id is echoed as written");
    }
}

/// What was understood of a submission can be written down in the plain way and means the same.
fn round_trip(submit: &Submit<'_>) {
    let text = |text: &str| serde_json::to_string(text).expect("any text is JSON");
    let mut line = format!(
        "{{\"id\":1,\"method\":\"mining.submit\",\"params\":[{},{},\"",
        text(&submit.user),
        text(&submit.job_id)
    );
    submit.extranonce2.iter().for_each(|byte| line.push_str(&format!("{byte:02x}")));
    line.push_str(&format!("\",\"{:08x}\",\"{:08x}\"", submit.ntime, submit.nonce));
    if let Some(bits) = submit.version_bits {
        line.push_str(&format!(",\"{bits:08x}\""));
    }
    line.push_str("]}");
    let again = Request::parse(line.as_bytes()).expect("a plain submission");
    assert_eq!(again.call, Call::Submit(submit.clone()));
}

/// A pool can be as hostile as a miner.
fn read_server_line(line: &[u8]) {
    if let Ok(ServerLine::Notify(notify)) = ServerLine::parse(line) {
        let solution =
            Solution { extranonce2: &[0; 8], ntime: notify.ntime, nonce: 7, version_rolling: None };
        let header = notify.header(&[1; 4], &solution);
        assert_eq!(header[76..], 7u32.to_le_bytes());
    }
}
