//! When a template is worth publishing: a new tip at once, more fees once in a while.
//!
//! Every template that is published costs each miner a job and each pool a declaration, so a template that is hardly
//! better than the last one is let go. This module never asks for templates and never makes one.

use std::sync::Arc;
use std::time::Duration;

use stratum::Now;

use crate::BlockTemplate;

/// What makes a template worth publishing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishPolicy {
    /// How many satoshis more than the last one the coinbase must be able to pay. At least 1 counts.
    pub min_gain: u64,
    /// The shortest time between two templates of one tip, but for the full one that follows an empty one.
    pub min_interval: Duration,
}

/// A template to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The template.
    pub template: Arc<BlockTemplate>,
    /// Whether it is the first on its tip.
    pub new_tip: bool,
}

/// Decides over the templates of one source, in the order in which they come.
#[derive(Debug)]
pub struct Publisher {
    policy: PublishPolicy,
    last: Option<Last>,
    /// A better template that came too early. At most one: a later one takes its place.
    held: Option<Arc<BlockTemplate>>,
}

#[derive(Debug)]
struct Last {
    template: Arc<BlockTemplate>,
    at: Duration,
    /// Whether it was the empty first one of its tip, which waits for its full one.
    is_stopgap: bool,
}

impl Publisher {
    /// Nothing was published yet.
    pub fn new(policy: PublishPolicy) -> Self {
        Publisher { policy, last: None, held: None }
    }

    /// A template of the node's came. Returns what to publish, if it is to be published now.
    ///
    /// A template for a tip that was left is for the caller to keep away: tips have no order here.
    pub fn handle_template(&mut self, template: Arc<BlockTemplate>, now: Now) -> Option<Publication> {
        let Some(last) = self.last.as_ref().filter(|last| last.template.same_tip(&template)) else {
            return Some(self.publish(template, true, false, now));
        };
        if last.is_stopgap {
            return Some(self.publish(template, false, false, now));
        }
        let least = last.template.coinbase_value.saturating_add(self.policy.min_gain.max(1));
        if template.coinbase_value < least {
            // What is held goes too: the newest template is what the node would build now.
            self.held = None;
            return None;
        }
        if now.monotonic < last.at + self.policy.min_interval {
            self.held = Some(template);
            return None;
        }
        Some(self.publish(template, false, false, now))
    }

    /// An empty template of our own for a tip that our node has validated. Returns it if nothing of that tip was
    /// published yet.
    pub fn handle_stopgap(&mut self, template: Arc<BlockTemplate>, now: Now) -> Option<Publication> {
        let is_known = self.last.as_ref().is_some_and(|last| last.template.same_tip(&template));
        (!is_known).then(|| self.publish(template, true, true, now))
    }

    /// When [`Publisher::handle_timeout`] is due, on the monotonic clock.
    pub fn next_timeout(&self) -> Option<Duration> {
        let last = self.last.as_ref()?;
        self.held.as_ref().map(|_| last.at + self.policy.min_interval)
    }

    /// Time has passed. Returns the template that was held back, when its time has come.
    pub fn handle_timeout(&mut self, now: Now) -> Option<Publication> {
        if self.next_timeout()? > now.monotonic {
            return None;
        }
        let held = self.held.take()?;
        Some(self.publish(held, false, false, now))
    }

    /// The template that was published last.
    pub fn last(&self) -> Option<&Arc<BlockTemplate>> {
        self.last.as_ref().map(|last| &last.template)
    }

    fn publish(
        &mut self,
        template: Arc<BlockTemplate>,
        new_tip: bool,
        is_stopgap: bool,
        now: Now,
    ) -> Publication {
        self.held = None;
        self.last = Some(Last { template: Arc::clone(&template), at: now.monotonic, is_stopgap });
        Publication { template, new_tip }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block_template::tests::small_template;

    const POLICY: PublishPolicy = PublishPolicy { min_gain: 100, min_interval: Duration::from_secs(10) };

    fn at(seconds: u64) -> Now {
        Now::simulated(Duration::from_secs(1_700_000_000), Duration::from_secs(seconds))
    }

    fn template(tip: u8, coinbase_value: u64) -> Arc<BlockTemplate> {
        Arc::new(BlockTemplate { previous_hash: [tip; 32], coinbase_value, ..small_template(9) })
    }

    fn value(publication: Option<Publication>) -> Option<(u64, bool)> {
        publication.map(|publication| (publication.template.coinbase_value, publication.new_tip))
    }

    #[test]
    fn a_new_tip_comes_at_once_and_a_gain_when_its_time_has_come() {
        let mut publisher = Publisher::new(POLICY);
        assert_eq!(value(publisher.handle_template(template(1, 1000), at(0))), Some((1000, true)));
        assert_eq!(value(publisher.handle_template(template(1, 1099), at(20))), None, "hardly better");
        assert_eq!(publisher.next_timeout(), None);
        assert_eq!(value(publisher.handle_template(template(1, 1100), at(20))), Some((1100, false)));
        assert_eq!(value(publisher.handle_template(template(1, 1200), at(21))), None, "too early");
        assert_eq!(value(publisher.handle_template(template(1, 1300), at(22))), None);
        assert_eq!(publisher.next_timeout(), Some(at(30).monotonic));
        assert_eq!(value(publisher.handle_timeout(at(29))), None);
        assert_eq!(value(publisher.handle_timeout(at(30))), Some((1300, false)));
        assert_eq!(value(publisher.handle_timeout(at(60))), None);
        assert_eq!(value(publisher.handle_template(template(1, 1500), at(31))), None);
        assert_eq!(value(publisher.handle_template(template(2, 900), at(32))), Some((900, true)));
        assert_eq!(publisher.next_timeout(), None, "what was held is of the tip before");
    }

    #[test]
    fn what_is_held_goes_when_the_node_thinks_better_of_it() {
        let mut publisher = Publisher::new(POLICY);
        publisher.handle_template(template(1, 1000), at(0));
        publisher.handle_template(template(1, 2000), at(1));
        publisher.handle_template(template(1, 1050), at(2));
        assert_eq!(publisher.next_timeout(), None);
        assert_eq!(publisher.last().map(|last| last.coinbase_value), Some(1000));
    }

    #[test]
    fn an_empty_first_template_gives_way_to_the_full_one_at_once() {
        let mut publisher = Publisher::new(POLICY);
        publisher.handle_template(template(1, 1000), at(0));
        assert_eq!(value(publisher.handle_stopgap(template(1, 900), at(1))), None, "the tip is known");
        assert_eq!(value(publisher.handle_stopgap(template(2, 900), at(2))), Some((900, true)));
        assert_eq!(value(publisher.handle_template(template(2, 900), at(2))), Some((900, false)));
        assert_eq!(value(publisher.handle_template(template(2, 1900), at(3))), None, "too early");
    }
}
