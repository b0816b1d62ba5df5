//! Where a demo's templates come from: the development chain, its nodes over JSON-RPC, or a node that was named.
//!
//! Nothing here mines.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bitcoin::Network;
use job_declarator::server::Mode;
use rand::RngCore;
use rand::rngs::OsRng;
use template::PublishPolicy;

use super::{DemoOptions, Pace};
use crate::clock::Clock;
use crate::config::{JobDeclarationConfig, NodeConfig, TemplatesConfig};
use crate::dev_chain::{DevChain, DevChainSettings, nbits_for_hashes, rpc};
use crate::error::RunError;
use crate::node::{BlockJudge, BlockSource, NodeClient};
use crate::pool::{self, JobDeclaration};
use crate::shutdown::Shutdown;
use crate::templates;

/// The development chain's difficulty: a block for so many shares.
const SHARES_PER_BLOCK: f64 = 500.0;

/// Transactions in each of the development chain's templates.
const TRANSACTIONS: usize = 500;

/// How often the development chain makes a fresher template.
const TEMPLATE_INTERVAL: Duration = Duration::from_secs(10);

/// Where jobs are declared, every fresher template of the development chain is worth one: there is something to see.
const EAGER: PublishPolicy = PublishPolicy { min_gain: 1, min_interval: Duration::from_secs(5) };

/// What is written into the coinbases of a farm's blocks.
const FARM_TAG: &str = "Checkweigh farm";

/// The nodes of a demo.
pub(super) struct Nodes {
    /// The development chain, where that is used.
    pub(super) chain: Option<DevChain>,
    /// Where the pool's templates come from.
    pub(super) source: BlockSource,
    /// What that is called.
    pub(super) source_name: String,
    /// Where jobs are declared.
    pub(super) declaring: Option<Declaring>,
}

/// What both sides of job declaration need.
pub(super) struct Declaring {
    /// For the pool: its node.
    pub(super) server: JobDeclaration,
    /// For the proxy: the farm's.
    pub(super) farm: JobDeclarationConfig,
    /// The folder that blocks are written to, where nobody wants them afterwards.
    pub(super) blocks: Option<BlocksFolder>,
}

/// A folder that goes with its owner.
pub(super) struct BlocksFolder(PathBuf);

impl Drop for BlocksFolder {
    fn drop(&mut self) {
        // There is none when no block was found.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts what the options ask for.
pub(super) async fn start(
    options: &DemoOptions,
    pace: &Pace,
    clock: Clock,
    end: &Shutdown,
) -> Result<Nodes, RunError> {
    match (&options.bitcoin_rpc, options.job_declaration) {
        (Some(node), false) => real_node(node, clock, end).await,
        (Some(node), true) => {
            let folder = std::env::temp_dir().join("checkweigh-demo-blocks");
            check_network(node).await?;
            declared(node, node, TemplatesConfig::default(), &folder, clock, end)
        }
        (None, false) => {
            let chain = development_chain(pace, clock, end);
            let source = BlockSource::Development(chain.clone());
            let source_name = "development chain".to_owned();
            Ok(Nodes { chain: Some(chain), source, source_name, declaring: None })
        }
        (None, true) => {
            let chain = development_chain(pace, clock, end);
            let farm = rpc::serve(chain.clone(), end.clone()).await?;
            let pool = rpc::serve(chain.neighbour(), end.clone()).await?;
            let folder = std::env::temp_dir().join(format!("checkweigh-demo-{}", std::process::id()));
            let templates = TemplatesConfig { policy: EAGER, ..TemplatesConfig::default() };
            let mut nodes = declared(&farm, &pool, templates, &folder, clock, end)?;
            if let Some(declaring) = &mut nodes.declaring {
                declaring.blocks = Some(BlocksFolder(folder));
            }
            Ok(Nodes { chain: Some(chain), ..nodes })
        }
    }
}

fn development_chain(pace: &Pace, clock: Clock, end: &Shutdown) -> DevChain {
    let settings = DevChainSettings {
        seed: OsRng.next_u64(),
        nbits: nbits_for_hashes((pace.hashes_per_share() * SHARES_PER_BLOCK) as u64),
        transactions: TRANSACTIONS,
    };
    let chain = DevChain::new(settings, clock);
    tokio::spawn(chain.clone().keep_fresh(TEMPLATE_INTERVAL, end.clone()));
    chain
}

async fn check_network(node: &NodeConfig) -> Result<Arc<NodeClient>, RunError> {
    let client = Arc::new(pool::node_client(node)?);
    let network = pool::network_of(&client).await?;
    if network != Network::Regtest {
        return Err(RunError::Failed(format!("the demo needs a node on regtest; this one is on {network}")));
    }
    Ok(client)
}

async fn real_node(node: &NodeConfig, clock: Clock, end: &Shutdown) -> Result<Nodes, RunError> {
    let client = check_network(node).await?;
    let blocks = std::env::temp_dir().join("checkweigh-demo-blocks");
    let source =
        templates::start(&TemplatesConfig::default(), Some((node, client)), blocks, clock, end.clone())?;
    Ok(Nodes { chain: None, source, source_name: pool::node_name(node), declaring: None })
}

/// A pool on its node, and a farm on the other.
fn declared(
    farm: &NodeConfig,
    pool: &NodeConfig,
    templates: TemplatesConfig,
    folder: &Path,
    clock: Clock,
    end: &Shutdown,
) -> Result<Nodes, RunError> {
    let node = Arc::new(pool::node_client(pool)?);
    let of_pool = Some((pool, Arc::clone(&node)));
    let source =
        templates::start(&TemplatesConfig::default(), of_pool, folder.join("pool"), clock, end.clone())?;
    let farm = JobDeclarationConfig {
        node: farm.clone(),
        templates,
        mode: Mode::FullTemplate,
        coinbase_tag: FARM_TAG.to_owned(),
        // What is mined is declared, or nothing is.
        pool_templates: false,
        solo: None,
        blocks_dir: folder.join("farm"),
    };
    let judge = BlockJudge::Rpc(Arc::clone(&node));
    let server = JobDeclaration { node, judge, requires_transactions: false, max_connections: 8 };
    let declaring = Some(Declaring { server, farm, blocks: None });
    Ok(Nodes { chain: None, source, source_name: pool::node_name(pool), declaring })
}
