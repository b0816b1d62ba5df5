//! A payload of the ledger as a damaged disk or a stranger may have it: decoded, written again, and applied to the books.

#![no_main]

use accounting::books::Books;
use accounting::codec::{self, VERSION};
use accounting::entry::Entry;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // With any first byte, and with the right one.
    let _ = codec::entries(data).count();
    let mut payload = vec![VERSION];
    payload.extend_from_slice(data);
    let mut books = Books::default();
    for entry in codec::entries(&payload) {
        let Ok(entry) = entry else { break };
        let mut again = Vec::new();
        codec::write_entry(&mut again, &entry);
        let read = codec::entries(&again).next().expect("it was written").expect("it was written whole");
        // A float that is no number equals nothing, itself included.
        assert_eq!(format!("{read:?}"), format!("{entry:?}"));
        if is_small(&entry) {
            books.apply(&entry);
        }
    }
    let _ = accounting::decode_sums(data);
    let _ = accounting::decode_acks(data);
    let _ = accounting::decode_part(data);
});

/// Numbers that no ledger reaches would overflow sums, which is a bug of whoever wrote them; and what strangers say became of
/// shares need not follow them.
fn is_small(entry: &Entry) -> bool {
    match entry {
        Entry::Share(share) => share.submitted.0 < 1 << 100 && share.upstream_work.0 < 1 << 100,
        Entry::Release(_) | Entry::Answer(_) | Entry::Gap(_) => false,
        _ => true,
    }
}
