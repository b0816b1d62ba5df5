//! Rows as a Parquet file: exact decimals for work, UTC timestamps, nulls for what is not known.

use std::fs::File;
use std::io::{self, BufWriter};
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::{ByteArray, FixedLenByteArray};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::{Cell, Row, Rows};

/// Rows that are written together: some megabytes in memory.
const ROWS_IN_GROUP: usize = 16_384;

/// The greatest number of a decimal with 38 digits, the most that the format's readers agree on.
const GREATEST_DECIMAL: u128 = 10u128.pow(38) - 1;

pub(super) struct Parquet {
    output: Option<BufWriter<File>>,
    writer: Option<SerializedFileWriter<BufWriter<File>>>,
    rows: Vec<Row>,
}

impl Parquet {
    pub(super) fn new(output: BufWriter<File>) -> Self {
        Parquet { output: Some(output), writer: None, rows: Vec::new() }
    }

    fn write_group(&mut self) -> Result<(), ParquetError> {
        let Some(first) = self.rows.first() else { return Ok(()) };
        if let Some(output) = self.output.take() {
            let schema = Arc::new(parse_message_type(&schema_of(first))?);
            let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
            self.writer = Some(SerializedFileWriter::new(output, schema, Arc::new(properties))?);
        }
        let writer = self.writer.as_mut().expect("it was made with the first rows");
        let mut group = writer.next_row_group()?;
        let mut place = 0;
        while let Some(mut column) = group.next_column()? {
            let cells = self.rows.iter().map(|row| &row[place].1);
            write_column(column.untyped(), cells)?;
            column.close()?;
            place += 1;
        }
        group.close()?;
        self.rows.clear();
        Ok(())
    }
}

impl Rows for Parquet {
    fn row(&mut self, row: Row) -> io::Result<()> {
        self.rows.push(row);
        if self.rows.len() >= ROWS_IN_GROUP { self.write_group().map_err(io::Error::other) } else { Ok(()) }
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.write_group().map_err(io::Error::other)?;
        match self.writer.take() {
            Some(writer) => writer.close().map(drop).map_err(io::Error::other),
            None => Ok(()),
        }
    }
}

fn schema_of(row: &Row) -> String {
    let mut schema = "message row {".to_owned();
    for (name, cell) in row {
        let form = match cell {
            Cell::Text(_) => format!("REQUIRED BYTE_ARRAY {name} (UTF8)"),
            Cell::Count(_) => format!("REQUIRED INT64 {name} (INTEGER(64,false))"),
            Cell::Time(_) => format!("REQUIRED INT64 {name} (TIMESTAMP(MICROS,true))"),
            Cell::Hashes(_) => format!("REQUIRED FIXED_LEN_BYTE_ARRAY (16) {name} (DECIMAL(38,0))"),
            Cell::Number(_) => format!("OPTIONAL DOUBLE {name}"),
        };
        schema.push_str(&form);
        schema.push(';');
    }
    schema.push('}');
    schema
}

/// All cells of a column are of one kind, which its schema was made of.
fn write_column<'c>(
    column: &mut ColumnWriter<'_>,
    cells: impl Iterator<Item = &'c Cell>,
) -> Result<(), ParquetError> {
    match column {
        ColumnWriter::ByteArrayColumnWriter(column) => {
            let text = |cell: &Cell| match cell {
                Cell::Text(text) => ByteArray::from(text.as_bytes().to_vec()),
                _ => unreachable!("a column of texts"),
            };
            column.write_batch(&cells.map(text).collect::<Vec<_>>(), None, None)?;
        }
        ColumnWriter::Int64ColumnWriter(column) => {
            let number = |cell: &Cell| match cell {
                Cell::Count(count) => *count as i64,
                Cell::Time(seconds) => (*seconds * 1_000_000) as i64,
                _ => unreachable!("a column of whole numbers"),
            };
            column.write_batch(&cells.map(number).collect::<Vec<_>>(), None, None)?;
        }
        ColumnWriter::FixedLenByteArrayColumnWriter(column) => {
            let decimal = |cell: &Cell| match cell {
                Cell::Hashes(hashes) => {
                    let bytes = (*hashes).min(GREATEST_DECIMAL).to_be_bytes().to_vec();
                    FixedLenByteArray::from(ByteArray::from(bytes))
                }
                _ => unreachable!("a column of hashes"),
            };
            column.write_batch(&cells.map(decimal).collect::<Vec<_>>(), None, None)?;
        }
        ColumnWriter::DoubleColumnWriter(column) => {
            let (mut numbers, mut levels) = (Vec::new(), Vec::new());
            for cell in cells {
                let Cell::Number(number) = cell else { unreachable!("a column of numbers") };
                levels.push(i16::from(number.is_some()));
                numbers.extend(*number);
            }
            column.write_batch(&numbers, Some(&levels), None)?;
        }
        _ => unreachable!("the schema has no other columns"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};

    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let path = tempfile::NamedTempFile::new().expect("a file");
        let rows = ROWS_IN_GROUP + 3;
        let mut parquet = Box::new(Parquet::new(BufWriter::new(path.reopen().expect("a file"))));
        for number in 0..rows as u64 {
            let known = number.is_multiple_of(2).then_some(number as f64);
            let row = vec![
                ("device".to_owned(), Cell::Text(format!("rig{number}"))),
                ("start".to_owned(), Cell::Time(1_795_564_800)),
                ("accepted".to_owned(), Cell::Count(number)),
                ("accepted_hashes".to_owned(), Cell::Hashes(u128::from(number) << 70)),
                ("energy_j".to_owned(), Cell::Number(known)),
            ];
            parquet.row(row).expect("it is written");
        }
        parquet.finish().expect("it is written");
        let reader = SerializedFileReader::new(path.reopen().expect("a file")).expect("a Parquet file");
        assert_eq!(reader.metadata().num_row_groups(), 2);
        let read: Vec<String> =
            reader.get_row_iter(None).expect("rows").map(|row| row.expect("a row").to_string()).collect();
        assert_eq!(read.len(), rows);
        assert_eq!(
            read[3],
            "{device: \"rig3\", start: 2026-11-25 00:00:00.000000 +00:00, accepted: 3, \
             accepted_hashes: 3541774862152233910272., energy_j: null}"
        );
    }
}
