//! The text format of Prometheus, version 0.0.4, line by line, with the formatting of `metrics-exporter-prometheus`.
//!
//! Its recorder is not used: it counts by itself what is summed already, keeps every latency until somebody asks, and
//! is meant to be one per process, while a process here may run several roles.

use std::fmt::Display;
use std::time::Duration;

use accounting::AckSums;
use metrics_exporter_prometheus::{LabelSet, formatting};

use crate::latency::LatencySnapshot;

/// Upper limits of the exported classes of latency, as exponents of two of microseconds: 64 microseconds to
/// 33 seconds. The program's own classes are finer.
const LATENCY_EXPONENTS: std::ops::RangeInclusive<u32> = 6..=25;

/// A page that grows family by family.
#[derive(Default)]
pub(super) struct Page {
    pub(super) text: String,
    family: &'static str,
}

impl Page {
    pub(super) fn counter(&mut self, name: &'static str, help: &str) {
        self.start(name, help, "counter");
    }

    pub(super) fn gauge(&mut self, name: &'static str, help: &str) {
        self.start(name, help, "gauge");
    }

    fn start(&mut self, name: &'static str, help: &str, kind: &str) {
        formatting::write_help_line(&mut self.text, name, None, None, help);
        formatting::write_type_line(&mut self.text, name, None, None, kind);
        self.family = name;
    }

    pub(super) fn value(&mut self, value: impl Display) {
        self.line(None, None::<(&'static str, &str)>, value);
    }

    pub(super) fn labelled(&mut self, label: &'static str, text: &str, value: impl Display) {
        self.line(None, Some((label, formatting::sanitize_label_value(text))), value);
    }

    /// A value with two labels.
    pub(super) fn labelled_twice(&mut self, labels: [(&'static str, &str); 2], value: impl Display) {
        let [(first, text), (second, other)] = labels;
        let key = metrics::Key::from_parts(self.family, vec![metrics::Label::new(first, text.to_owned())]);
        let labels = LabelSet::from_key_and_global(&key, &Default::default());
        let second = Some((second, formatting::sanitize_label_value(other)));
        formatting::write_metric_line(&mut self.text, self.family, None, &labels, second, value, None);
    }

    pub(super) fn histogram(&mut self, name: &'static str, help: &str, latency: &LatencySnapshot) {
        self.start(name, help, "histogram");
        for exponent in LATENCY_EXPONENTS {
            // The classes of the histogram end one microsecond below each power of two.
            let limit = Duration::from_micros(1 << exponent);
            let count = latency.count_up_to(limit - Duration::from_micros(1));
            self.line(Some("bucket"), Some(("le", limit.as_secs_f64())), count);
        }
        self.line(Some("bucket"), Some(("le", "+Inf")), latency.count());
        self.line(Some("sum"), None::<(&'static str, &str)>, latency.sum().as_secs_f64());
        self.line(Some("count"), None::<(&'static str, &str)>, latency.count());
    }

    /// The histogram of one label's value; [`Page::start_histogram`] comes before the first.
    pub(super) fn acks_of(&mut self, label: &'static str, text: &str, acks: &AckSums) {
        let key = metrics::Key::from_parts(self.family, vec![metrics::Label::new(label, text.to_owned())]);
        let labels = LabelSet::from_key_and_global(&key, &Default::default());
        let mut line = |suffix, limit: Option<&str>, value: &dyn Display| {
            let limit = limit.map(|limit| ("le", limit));
            formatting::write_metric_line(
                &mut self.text,
                self.family,
                Some(suffix),
                &labels,
                limit,
                value,
                None,
            );
        };
        for (limit, count) in acks.up_to() {
            line("bucket", Some(&limit.to_string()), &count);
        }
        line("bucket", Some("+Inf"), &acks.count());
        line("sum", None, &(acks.total_us as f64 / 1e6));
        line("count", None, &acks.count());
    }

    /// Begins a family of histograms.
    pub(super) fn start_histogram(&mut self, name: &'static str, help: &str) {
        self.start(name, help, "histogram");
    }

    fn line(
        &mut self,
        suffix: Option<&'static str>,
        label: Option<(&'static str, impl Display)>,
        value: impl Display,
    ) {
        let none =
            LabelSet::from_key_and_global(&metrics::Key::from_static_name(self.family), &Default::default());
        formatting::write_metric_line(&mut self.text, self.family, suffix, &none, label, value, None);
    }
}
