//! A publisher of our own announces blocks: at once, in pieces, and after it was gone.

use super::*;
use crate::shutdown::shutdown;
use tokio::net::TcpListener;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(20);

/// What a publisher sends first: as ours but for the version that libzmq has, and it is ready.
fn publisher_starts() -> Vec<u8> {
    let mut greeting = greeting();
    greeting[11] = 1;
    let body = b"\x05READY\x0bSocket-Type\0\0\0\x03PUB";
    [&greeting[..], &[FLAG_COMMAND, body.len() as u8], body].concat()
}

/// The announcement of a block whose hash, as it is printed, begins with `first`.
fn announcement(first: u8) -> Vec<u8> {
    let mut message = vec![FLAG_MORE, 9];
    message.extend_from_slice(b"hashblock");
    message.extend_from_slice(&[FLAG_MORE, 32, first]);
    message.extend_from_slice(&[0; 31]);
    message.extend_from_slice(&[0, 4, 7, 0, 0, 0]);
    message
}

fn hash(first: u8) -> Hash {
    let mut hash = [0; 32];
    hash[31] = first;
    hash
}

#[test]
fn the_bytes_are_those_of_the_specification() {
    let hex = hex::encode(greeting());
    assert_eq!(hex, format!("ff00000000000000007f03004e554c4c{}", "00".repeat(48)));
    assert_eq!(hex::encode(ready()), "04190552454144590b536f636b65742d5479706500000003535542");
    assert_eq!(hex::encode(subscription()), "000a0168617368626c6f636b");
}

#[test]
fn an_announcement_may_come_in_pieces() {
    let bytes = [publisher_starts(), announcement(1), announcement(2)].concat();
    let mut whole = Subscriber::default();
    let output = whole.handle(&bytes).expect("right");
    assert_eq!(output.bytes, [ready(), subscription()].concat());
    assert_eq!(output.newest, Some(hash(2)));
    let mut pieces = Subscriber::default();
    let mut heard = Vec::new();
    for byte in bytes {
        heard.extend(pieces.handle(&[byte]).expect("right").newest);
    }
    assert_eq!(heard, [hash(1), hash(2)]);
}

#[test]
fn what_is_no_announcement_is_let_go_and_what_is_wrong_ends_it() {
    let mut subscriber = Subscriber::default();
    subscriber.handle(&publisher_starts()).expect("right");
    for message in [&b"\0\x01x"[..], b"\x01\x09hashblock\0\x01x", b"\x01\x08rawblock\0\0"] {
        assert_eq!(subscriber.handle(message), Ok(Output::default()));
    }
    let wrong: [&[u8]; 5] = [
        b"\x02\0\0\0\0\0\0\x04\x01",
        b"\x02\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x04\0",
        b"\x04\x06\x05ERROR",
        &[FLAG_MORE, 0].repeat(MAX_PARTS + 1),
    ];
    for wrong in wrong {
        let mut subscriber = Subscriber::default();
        subscriber.handle(&publisher_starts()).expect("right");
        assert!(subscriber.handle(wrong).is_err(), "{wrong:?}");
    }
    assert!(Subscriber::default().handle(&[0x16; 64]).is_err());
    let mut plain = publisher_starts();
    plain[12..17].copy_from_slice(b"PLAIN");
    assert!(Subscriber::default().handle(&plain).is_err());
    let early = [&greeting()[..], &announcement(1)].concat();
    assert!(Subscriber::default().handle(&early).is_err());
}

#[tokio::test]
async fn a_publisher_that_returns_is_found() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
    let port = listener.local_addr().expect("bound").port();
    let (publish, mut announced) = watch::channel(None);
    let (trigger, end) = shutdown();
    let endpoint = ZmqEndpoint { host: "127.0.0.1".to_owned(), port };
    let task = tokio::spawn(run_hashblock_subscriber(endpoint, publish, end));
    for block in [1, 2] {
        let (mut stream, _) = timeout(DEADLINE, listener.accept()).await.expect("dialled").expect("accepted");
        stream.write_all(&publisher_starts()).await.expect("it reads");
        let mut expected = vec![0; GREETING_SIZE + ready().len() + subscription().len()];
        timeout(DEADLINE, stream.read_exact(&mut expected)).await.expect("in time").expect("subscribed");
        assert!(expected.ends_with(&subscription()));
        stream.write_all(&announcement(block)).await.expect("it reads");
        timeout(DEADLINE, announced.changed()).await.expect("in time").expect("it runs");
        assert_eq!(*announced.borrow_and_update(), Some(hash(block)));
    }
    trigger.trigger();
    timeout(DEADLINE, task).await.expect("in time").expect("no panic");
}
