//! From the configuration to a running source of templates: the one place that knows all kinds of them.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::clock::Clock;
use crate::config::{NodeConfig, SourceConfig, TemplatesConfig};
use crate::error::RunError;
#[cfg(feature = "ipc")]
use crate::node::ipc::{IpcSourceSettings, start_ipc_node, start_ipc_source};
use crate::node::source::run_hashblock_subscriber;
use crate::node::{
    BlockJudge, BlockSource, BlockSubmitter, NodeClient, RpcSourceSettings, SourcePath, SubmitterSettings,
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
        #[cfg(feature = "ipc")]
        SourceConfig::Ipc { socket } => {
            let (queue, blocks) = mpsc::channel(submitter::SOURCE_QUEUE);
            let path = SourcePath { blocks: queue, templates: source.templates() };
            let ipc = IpcSourceSettings {
                socket: socket.clone(),
                min_gain: config.policy.min_gain,
                fee_interval: config.policy.min_interval,
                empty_first: config.empty_first,
            };
            start_ipc_source(ipc, outlet, blocks, shutdown).map_err(RunError::io("start a thread"))?;
            let client = node.map(|(_, client)| client);
            let submitter = Arc::new(BlockSubmitter::through_source(client, path, settings));
            Ok(BlockSource::Node { source, submitter })
        }
        #[cfg(not(feature = "ipc"))]
        SourceConfig::Ipc { .. } => Err(no_ipc()),
    }
}

/// Who judges the blocks that others declare to us: the node behind the interprocess interface where templates come
/// from there, else that of `client`.
pub fn judge(
    config: &TemplatesConfig,
    client: Arc<NodeClient>,
    shutdown: Shutdown,
) -> Result<BlockJudge, RunError> {
    match &config.source {
        SourceConfig::Rpc | SourceConfig::Sv2 { .. } => {
            drop(shutdown);
            Ok(BlockJudge::Rpc(client))
        }
        #[cfg(feature = "ipc")]
        SourceConfig::Ipc { socket } => {
            let node = start_ipc_node(socket.clone(), shutdown).map_err(RunError::io("start a thread"))?;
            Ok(BlockJudge::Ipc(node))
        }
        #[cfg(not(feature = "ipc"))]
        SourceConfig::Ipc { .. } => Err(no_ipc()),
    }
}

/// The configuration's reader has said so already.
#[cfg(not(feature = "ipc"))]
fn no_ipc() -> RunError {
    RunError::Failed(format!("templates.source: {}", crate::config::NO_IPC))
}
