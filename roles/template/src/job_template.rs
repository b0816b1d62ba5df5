//! What a job is made of, from whatever source: our own node's template, or a template provider's messages.
//!
//! The transactions are not here: a source keeps them, by the template's id. This module never chooses a payout; it
//! puts the outputs that it is given before those that the template must have.

use std::collections::VecDeque;

use stratum::hash::Hash;
use stratum::job::MAX_MERKLE_PATH;
use stratum::sv2::messages::{NewTemplate, TemplateSetNewPrevHash};
use stratum::{Now, Target, TemplateId};

use crate::BlockTemplate;
use crate::block_template::{MAX_MONEY, TemplateError};
use crate::coinbase::{SEQUENCE, TRANSACTION_VERSION, height_push, push_length};
use crate::outputs::{Output, parse_outputs_without_count, write_outputs_without_count};
use crate::skeleton::{Skeleton, SkeletonError};

/// The longest start of a coinbase's script that a template may ask for (SV2 7.2).
pub const MAX_SCRIPT_START: usize = 8;

/// Future templates that wait for their tip: providers keep one or two. The oldest makes room for a newer one.
pub const MAX_FUTURE_TEMPLATES: usize = 16;

/// A block template without its transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobTemplate {
    /// The source's number of it.
    pub id: TemplateId,
    /// The hash of the block to build on.
    pub previous_hash: Hash,
    /// The header's version.
    pub version: u32,
    /// The compact target of the block to find.
    pub nbits: u32,
    /// What a hash must meet to be a block. May be harder than `nbits` says (SV2 7.3).
    pub network_target: Target,
    /// The time to start from; unix seconds.
    pub start_time: u32,
    /// The coinbase's version.
    pub coinbase_version: u32,
    /// What the coinbase's script must begin with; at most [`MAX_SCRIPT_START`] bytes.
    pub script_start: Vec<u8>,
    /// The sequence of the coinbase's input.
    pub sequence: u32,
    /// What outputs of ours may pay, subsidy and fees; satoshis.
    pub value: u64,
    /// The outputs that must come last, such as the witness commitment.
    pub outputs: Vec<Output>,
    /// The coinbase's lock time.
    pub lock_time: u32,
    /// The siblings of the coinbase on its way to the merkle root, lowest first.
    pub merkle_path: Vec<Hash>,
    /// When it reached us.
    pub received: Now,
}

/// Why no coinbase can be made for a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssemblyError {
    /// A pool that names no output has none for its payout. The fault of the pool.
    #[error("the pool names no output for its payout")]
    NoPayout,
    /// An output besides the first already pays something. The fault of the pool (SV2 6.4.3).
    #[error("the pool names outputs that pay something already")]
    NotZero,
    /// The script has no room for the tag and the extranonce.
    #[error("{0}")]
    Script(#[from] SkeletonError),
}

impl JobTemplate {
    /// The template of our own node.
    pub fn of_block_template(template: &BlockTemplate) -> Self {
        let commitment = template.witness_commitment.iter();
        JobTemplate {
            id: template.id,
            previous_hash: template.previous_hash,
            version: template.version,
            nbits: template.nbits,
            network_target: template.network_target(),
            start_time: template.current_time.max(template.min_ntime),
            coinbase_version: TRANSACTION_VERSION,
            script_start: height_push(template.height),
            sequence: SEQUENCE,
            value: template.coinbase_value,
            outputs: commitment.map(|script| Output { value: 0, script: script.clone() }).collect(),
            // What makes it unique (BIP 54). Heights of templates are never zero.
            lock_time: template.height.saturating_sub(1),
            merkle_path: template.merkle_path.clone(),
            received: template.received,
        }
    }

    /// The template that a provider's two messages describe. Errors are the provider's fault.
    pub fn of_messages(
        template: &NewTemplate,
        tip: &TemplateSetNewPrevHash,
        received: Now,
    ) -> Result<Self, TemplateError> {
        check(template)?;
        let wrong = |problem: String| TemplateError::Wrong { field: "coinbase_tx_outputs", problem };
        let outputs =
            parse_outputs_without_count(&template.coinbase_tx_outputs, template.coinbase_tx_outputs_count)
                .map_err(|error| wrong(error.to_string()))?;
        Ok(JobTemplate {
            id: template.template_id,
            previous_hash: tip.prev_hash,
            version: template.version,
            nbits: tip.n_bits,
            network_target: tip.target.min(Target::from_compact(tip.n_bits)),
            start_time: tip.header_timestamp,
            coinbase_version: template.coinbase_tx_version,
            script_start: template.coinbase_prefix.clone(),
            sequence: template.coinbase_tx_input_sequence,
            value: template.coinbase_tx_value_remaining,
            outputs,
            lock_time: template.coinbase_tx_locktime,
            merkle_path: template.merkle_path.clone(),
            received,
        })
    }

    /// The messages that describe it to a client of ours. A client takes up a future template with the second one; a
    /// template that is not future needs the first alone.
    pub fn to_messages(&self, future_template: bool) -> (NewTemplate, TemplateSetNewPrevHash) {
        let template = NewTemplate {
            template_id: self.id,
            future_template,
            version: self.version,
            coinbase_tx_version: self.coinbase_version,
            coinbase_prefix: self.script_start.clone(),
            coinbase_tx_input_sequence: self.sequence,
            coinbase_tx_value_remaining: self.value,
            coinbase_tx_outputs_count: self.outputs.len() as u32,
            coinbase_tx_outputs: write_outputs_without_count(&self.outputs),
            coinbase_tx_locktime: self.lock_time,
            merkle_path: self.merkle_path.clone(),
        };
        let tip = TemplateSetNewPrevHash {
            template_id: self.id,
            prev_hash: self.previous_hash,
            header_timestamp: self.start_time,
            n_bits: self.nbits,
            target: self.network_target,
        };
        (template, tip)
    }

    /// The coinbase for a pool that wants `pool_outputs`: all goes to the first, the others stay as they are (SV2
    /// 6.4.3), and the template's own come last. An empty tag is left out.
    pub fn coinbase(
        &self,
        pool_outputs: &[Output],
        tag: &[u8],
        extranonce_size: usize,
    ) -> Result<Skeleton, AssemblyError> {
        let (payout, others) = pool_outputs.split_first().ok_or(AssemblyError::NoPayout)?;
        if others.iter().any(|output| output.value != 0) {
            return Err(AssemblyError::NotZero);
        }
        let mut script_prefix = self.script_start.clone();
        if !tag.is_empty() {
            // A tag that needs a longer opcode has no room anyway.
            push_length(&mut script_prefix, tag.len().min(75));
            script_prefix.extend_from_slice(tag);
        }
        push_length(&mut script_prefix, extranonce_size.min(75));
        let mut outputs = vec![Output { value: self.value, script: payout.script.clone() }];
        outputs.extend_from_slice(others);
        outputs.extend_from_slice(&self.outputs);
        let skeleton = Skeleton {
            version: self.coinbase_version,
            script_prefix,
            extranonce_size,
            sequence: self.sequence,
            outputs,
            lock_time: self.lock_time,
        };
        Ok(skeleton.check()?)
    }
}

/// What can be checked before the tip is known.
fn check(template: &NewTemplate) -> Result<(), TemplateError> {
    let wrong = |field: &'static str, problem: String| Err(TemplateError::Wrong { field, problem });
    if template.coinbase_prefix.len() > MAX_SCRIPT_START {
        let length = template.coinbase_prefix.len();
        return wrong("coinbase_prefix", format!("has {length} bytes, of {MAX_SCRIPT_START} at most"));
    }
    if template.merkle_path.len() > MAX_MERKLE_PATH {
        let length = template.merkle_path.len();
        return wrong("merkle_path", format!("has {length} steps, and {MAX_MERKLE_PATH} lead to any block"));
    }
    if template.coinbase_tx_value_remaining > MAX_MONEY {
        let value = template.coinbase_tx_value_remaining;
        return wrong("coinbase_tx_value_remaining", format!("is {value} satoshis, more than there are"));
    }
    Ok(())
}

/// The messages of a template provider, put together: which template is to be mined on.
#[derive(Debug, Default)]
pub struct TemplateFeed {
    /// Templates that wait for a tip, oldest first; at most [`MAX_FUTURE_TEMPLATES`].
    future: VecDeque<NewTemplate>,
    tip: Option<TemplateSetNewPrevHash>,
}

impl TemplateFeed {
    /// Nothing has come yet; so it is again after a reconnection.
    pub fn new() -> Self {
        TemplateFeed::default()
    }

    /// A template came. Returns it if it is to be mined on at once.
    pub fn handle_new_template(
        &mut self,
        template: NewTemplate,
        now: Now,
    ) -> Result<Option<JobTemplate>, TemplateError> {
        check(&template)?;
        if template.future_template {
            if self.future.len() == MAX_FUTURE_TEMPLATES {
                self.future.pop_front();
            }
            self.future.push_back(template);
            return Ok(None);
        }
        // Without a tip it relates to nothing, and a provider that sends one first will send more.
        self.tip.as_ref().map(|tip| JobTemplate::of_messages(&template, tip, now)).transpose()
    }

    /// A tip came. Returns the template that it names; the other future templates are void. A tip that names a
    /// template which never came is the provider's fault.
    pub fn handle_set_new_prev_hash(
        &mut self,
        tip: TemplateSetNewPrevHash,
        now: Now,
    ) -> Result<JobTemplate, TemplateError> {
        let named = self.future.drain(..).rev().find(|template| template.template_id == tip.template_id);
        let Some(template) = named else {
            let problem = format!("names template {}, which never came", tip.template_id);
            return Err(TemplateError::Wrong { field: "template_id", problem });
        };
        let template = JobTemplate::of_messages(&template, &tip, now)?;
        self.tip = Some(tip);
        Ok(template)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block_template::tests::{small_template, with_transactions};
    use crate::{CoinbaseRules, outputs};
    use std::time::Duration;

    const NOW: Now = Now { monotonic: Duration::from_secs(5), utc: Duration::from_secs(1_700_000_000) };

    fn ours() -> JobTemplate {
        JobTemplate::of_block_template(&with_transactions(small_template(900_000), 5))
    }

    fn payout(script: &[u8]) -> Output {
        Output { value: 0, script: script.to_vec() }
    }

    #[test]
    fn messages_bring_the_same_template() {
        let ours = ours();
        let (template, tip) = ours.to_messages(true);
        assert_eq!(JobTemplate::of_messages(&template, &tip, NOW), Ok(ours));
    }

    #[test]
    fn a_declared_coinbase_is_the_one_that_a_pool_of_ours_would_make() {
        let template = with_transactions(small_template(900_000), 5);
        let rules = CoinbaseRules::new(vec![0x51], b"tag".to_vec(), 12).expect("fits");
        let skeleton = JobTemplate::of_block_template(&template).coinbase(&[payout(&[0x51])], b"tag", 12);
        let skeleton = skeleton.expect("fits");
        assert_eq!(skeleton.parts(), rules.parts(&template).expect("fits"));
        assert_eq!(skeleton.height(), Some(900_000));
        assert_eq!(skeleton.witness_commitment(), template.witness_commitment.as_deref());
    }

    #[test]
    fn the_first_output_gets_it_all_and_the_others_stay() {
        let pool = [payout(&[0x51]), payout(&[0x6a, 1, 7])];
        let skeleton = ours().coinbase(&pool, b"", 32).expect("fits");
        assert_eq!(skeleton.outputs.len(), 3);
        assert_eq!(skeleton.payout(&[0x51]), Some(ours().value));
        assert_eq!(skeleton.outputs[1], pool[1]);
        assert_eq!(outputs::sum(&skeleton.outputs), ours().value);
        assert_eq!(ours().coinbase(&[], b"", 8), Err(AssemblyError::NoPayout));
        let paid = Output { value: 1, script: vec![0x52] };
        assert_eq!(ours().coinbase(&[payout(&[0x51]), paid], b"", 8), Err(AssemblyError::NotZero));
        let no_room = AssemblyError::Script(SkeletonError::ScriptSize(4 + 1 + 64 + 1 + 32));
        assert_eq!(ours().coinbase(&pool, &[b'x'; 64], 32), Err(no_room));
        assert!(ours().coinbase(&pool, &[b'x'; 62], 32).is_ok());
        assert!(ours().coinbase(&pool, &[b'x'; 300], 32).is_err());
        let none = AssemblyError::Script(SkeletonError::ExtranonceSize(0));
        assert_eq!(ours().coinbase(&pool, b"", 0), Err(none));
    }

    #[test]
    fn a_provider_that_is_wrong_is_told_from_one_that_is_right() {
        let (template, tip) = ours().to_messages(true);
        let wrong = [
            NewTemplate { coinbase_prefix: vec![0; 9], ..template.clone() },
            NewTemplate { merkle_path: vec![[0; 32]; MAX_MERKLE_PATH + 1], ..template.clone() },
            NewTemplate { coinbase_tx_value_remaining: MAX_MONEY + 1, ..template.clone() },
            NewTemplate { coinbase_tx_outputs_count: 2, ..template.clone() },
            NewTemplate { coinbase_tx_outputs_count: u32::MAX, ..template.clone() },
        ];
        for wrong in wrong {
            assert!(JobTemplate::of_messages(&wrong, &tip, NOW).is_err());
        }
        let easier = TemplateSetNewPrevHash { target: Target::MAX, ..tip };
        let read = JobTemplate::of_messages(&template, &easier, NOW).expect("right");
        assert_eq!(read.network_target, Target::from_compact(easier.n_bits), "no easier than the network's");
    }

    #[test]
    fn a_tip_takes_up_the_template_that_it_names() {
        let mut feed = TemplateFeed::new();
        let message = |id: u64, future| {
            let template = JobTemplate { id: TemplateId(id), ..ours() };
            template.to_messages(future)
        };
        assert_eq!(feed.handle_new_template(message(1, false).0, NOW), Ok(None), "there is no tip");
        for id in 2..30 {
            assert_eq!(feed.handle_new_template(message(id, true).0, NOW), Ok(None));
        }
        assert_eq!(feed.future.len(), MAX_FUTURE_TEMPLATES);
        let taken = feed.handle_set_new_prev_hash(message(28, true).1, NOW).expect("it came");
        assert_eq!(taken.id, TemplateId(28));
        assert!(feed.handle_set_new_prev_hash(message(29, true).1, NOW).is_err(), "it is void");
        let next = feed.handle_new_template(message(30, false).0, NOW).expect("right").expect("at once");
        assert_eq!((next.id, next.previous_hash), (TemplateId(30), [9; 32]));
    }
}
