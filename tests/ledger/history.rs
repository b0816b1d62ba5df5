//! A device's history over a year. `benches/ledger.rs` does the same with 20,000 devices, and measures.

use accounting::{Level, Subject};
use checkweigh::ledger::{Reader, SqliteReader, SqliteStore};
use stratum::DeviceId;

use crate::{chain, year};

#[test]
fn a_device_over_a_year_is_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut store, mut views, _) = SqliteStore::open(folder.path(), chain::KEEP_ALL).expect("it opens");
    year::write(&mut store, &mut views, 20, 24);
    let reader = SqliteReader::open(folder.path()).expect("beside the writer");
    let read = |id: u32| {
        let device = Subject::Device(DeviceId(id));
        reader
            .points(device, Level::Hour, year::YEAR, year::YEAR + year::HOURS * 3600)
            .expect("they can be read")
    };
    let points = read(year::WHOLE.0);
    assert_eq!(points.len() as u64, year::HOURS);
    for (number, (start, sums)) in points.into_iter().enumerate() {
        assert_eq!((start, sums), (year::YEAR + number as u64 * 3600, year::hour(number as u64)));
    }
    assert_eq!(read(19).len(), 365);
}
