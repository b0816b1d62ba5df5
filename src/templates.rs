//! From the configuration to a running source of templates: the one place that knows all kinds of them.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::clock::Clock;
use crate::config::{NodeConfig, SourceConfig, TemplatesConfig};
use crate::error::RunError;
use crate::node::source::run_hashblock_subscriber;
use crate::node::{
    BlockSource, BlockSubmitter, NodeClient, RpcSourceSettings, SourcePath, SubmitterSettings,
    run_rpc_source, run_sv2_source, submitter, template_source,
};
use crate::shutdown::Shutdown;

/// Starts the source that the configuration names, and what takes blocks to the node and to the folder `blocks_dir`.
/// Nothing is waited for: a source that is not there yet gives its first template later.
///
/// `node` is the node of `[node]`; JSON-RPC needs one. Fails where the configuration cannot work.
pub fn start(
    config: &TemplatesConfig,
    node: Option<(&NodeConfig, Arc<NodeClient>)>,
    blocks_dir: PathBuf,
    clock: Clock,
    shutdown: Shutdown,
) -> Result<BlockSource, RunError> {
    let (outlet, source) = template_source(config.source.kind(), config.policy, clock);
    let settings = SubmitterSettings { directory: blocks_dir, deadline: submitter::DEFAULT_DEADLINE };
    let missing = || RunError::Failed("templates.source: \"rpc\" needs a [node]".to_owned());
    match &config.source {
        SourceConfig::Rpc => {
            let (node, client) = node.ok_or_else(missing)?;
            let announced = node.zmq_hashblock.clone().map(|endpoint| {
                let (publish, announced) = watch::channel(None);
                tokio::spawn(run_hashblock_subscriber(endpoint, publish, shutdown.clone()));
                announced
            });
            let rpc = RpcSourceSettings { poll: config.poll, empty_first: config.empty_first, announced };
            tokio::spawn(run_rpc_source(Arc::clone(&client), rpc, outlet, shutdown));
            let submitter = Arc::new(BlockSubmitter::new(client, settings));
            Ok(BlockSource::Node { source, submitter })
        }
        SourceConfig::Sv2 { url } => {
            let (queue, blocks) = mpsc::channel(submitter::SOURCE_QUEUE);
            let path = SourcePath { blocks: queue, templates: source.templates() };
            tokio::spawn(run_sv2_source(url.clone(), outlet, blocks, shutdown));
            let client = node.map(|(_, client)| client);
            let submitter = Arc::new(BlockSubmitter::through_source(client, path, settings));
            Ok(BlockSource::Node { source, submitter })
        }
    }
}
