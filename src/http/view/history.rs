//! What a ledger on the disk knows of the time before: points, and sums over a period.
//!
//! Each question opens the ledger anew, to read only, on a thread where waiting is allowed: nothing here is ever in the
//! way of those who write it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use accounting::{BlockRow, EventRow, LedgerId, Level, Subject, Sums};
use stratum::DeviceId;

use super::{Ledger, Period, Point, Span, Unanswered};
use crate::ledger::{LedgerStatus, Reader, SqliteReader, StoreError};

/// Points of one answer at most: two weeks of minutes.
const MAX_POINTS: u64 = 20_160;

/// A period up to this long is added up from minutes, in seconds.
const LONGEST_OF_MINUTES: u64 = 3 * 3600;

/// A period up to this long is added up from ten-minute points, in seconds; beyond, hours serve.
const LONGEST_OF_TEN_MINUTES: u64 = 2 * 86_400;

/// Where to look. Cheap to clone.
#[derive(Clone, Debug)]
pub struct History {
    folder: Arc<PathBuf>,
    id: LedgerId,
    began_us: u64,
    status: Arc<LedgerStatus>,
}

impl History {
    /// The history in a folder.
    pub fn new(folder: PathBuf, id: LedgerId, began_us: u64, status: Arc<LedgerStatus>) -> Self {
        History { folder: Arc::new(folder), id, began_us, status }
    }

    /// When the ledger began, in unix microseconds.
    pub(super) fn began_us(&self) -> u64 {
        self.began_us
    }

    /// How the ledger is.
    pub(super) fn ledger(&self, records_without_detail: u64) -> Ledger {
        let status = &self.status;
        let is_failing =
            status.is_failing.load(Ordering::Relaxed) || status.is_failing_views.load(Ordering::Relaxed);
        let alarm = is_failing.then(|| status.last_error()).flatten();
        Ledger {
            is_kept: true,
            id: Some(hex::encode(self.id.0)),
            since_us: Some(self.began_us),
            head_batch: Some(status.durable_batch.load(Ordering::Relaxed)),
            head_hash: None,
            watermark_batch: Some(status.watermark.load(Ordering::Relaxed)),
            unwritten_bytes: Some(status.waiting_bytes.load(Ordering::Relaxed)),
            records_without_detail,
            alarm,
        }
    }

    /// The points of a subject that lie in a span, of a level.
    pub(super) async fn points(
        &self,
        subject: Subject,
        level: Level,
        span: Span,
    ) -> Result<Vec<Point>, Unanswered> {
        let (from, to) = (span.from_us / 1_000_000, span.to_us.div_ceil(1_000_000));
        if to.saturating_sub(from) / level.seconds() > MAX_POINTS {
            return Err(Unanswered::Failed(format!("more than {MAX_POINTS} points were asked for")));
        }
        let points = self.read(move |reader| reader.points(subject, level, level.start(from), to)).await?;
        Ok(points.into_iter().map(|(start, sums)| Point { start, sums }).collect())
    }

    /// The sums of all of these devices over a span, widened to whole spans of what is kept.
    pub(super) async fn period(&self, devices: Vec<DeviceId>, span: Span) -> Result<Period, Unanswered> {
        let (level, from, to) = whole_spans(span);
        let sums = self
            .read(move |reader| {
                let mut all = Vec::new();
                for id in devices {
                    let points = reader.points(Subject::Device(id), level, from, to)?;
                    if !points.is_empty() {
                        let mut sums = Sums::default();
                        points.iter().for_each(|(_, point)| sums.add(point));
                        all.push((id, sums));
                    }
                }
                Ok(all)
            })
            .await?;
        Ok(Period { span: Span { from_us: from * 1_000_000, to_us: to * 1_000_000 }, devices: sums })
    }

    /// The sums of one subject over a span, widened to whole spans of what is kept.
    pub(super) async fn sums(&self, subject: Subject, span: Span) -> Result<(Span, Sums), Unanswered> {
        let (level, from, to) = whole_spans(span);
        let points = self.read(move |reader| reader.points(subject, level, from, to)).await?;
        let mut sums = Sums::default();
        points.iter().for_each(|(_, point)| sums.add(point));
        Ok((Span { from_us: from * 1_000_000, to_us: to * 1_000_000 }, sums))
    }

    /// Events that are in the rollups, latest first.
    pub(super) async fn events(
        &self,
        limit: usize,
        before: Option<u64>,
    ) -> Result<Vec<EventRow>, Unanswered> {
        self.read(move |reader| reader.events(before, limit)).await
    }

    /// Blocks that are in the rollups, latest first.
    pub(super) async fn blocks(
        &self,
        limit: usize,
        before: Option<u64>,
    ) -> Result<Vec<BlockRow>, Unanswered> {
        self.read(move |reader| reader.blocks(before, limit)).await
    }

    async fn read<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&SqliteReader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Unanswered> {
        let folder = Arc::clone(&self.folder);
        let answer = tokio::task::spawn_blocking(move || ask(&SqliteReader::open(&folder)?)).await;
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                // The path is for the operator's log, not for whoever asks over HTTP.
                tracing::error!("the API could not read the ledger: {error}");
                Err(Unanswered::Failed("the log of the program says why".to_owned()))
            }
            Err(_) => Err(Unanswered::Failed("a bug of ours; please report it".to_owned())),
        }
    }
}

/// The level that a span is added up from, and its ends widened to whole spans of it, in unix seconds.
fn whole_spans(span: Span) -> (Level, u64, u64) {
    let (from, to) = (span.from_us / 1_000_000, span.to_us.div_ceil(1_000_000));
    let level = match to.saturating_sub(from) {
        seconds if seconds <= LONGEST_OF_MINUTES => Level::Minute,
        seconds if seconds <= LONGEST_OF_TEN_MINUTES => Level::TenMinutes,
        _ => Level::Hour,
    };
    (level, level.start(from), level.start(to + level.seconds() - 1))
}
