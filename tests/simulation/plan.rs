//! What a seed decides before a simulation starts.

use mining_server::{Settings, ShareUse};
use stratum::vardiff::VardiffConfig;

use crate::dice::Dice;
use crate::miner::{Kind, Miner};
use crate::net::Place;
use crate::sv1_miner::Dialect;
use crate::sv2_miner::Model;

/// The compact network target that about one of 2^17 hashes meets.
const SOME_BLOCKS: u32 = 0x1f00_7fff;

/// That of regtest: every second hash is a block.
const ALL_BLOCKS: u32 = 0x207f_ffff;

#[derive(Debug)]
pub(crate) struct Plan {
    /// The upstream is a pool of somebody else.
    pub(crate) is_foreign: bool,
    /// The proxy has a second pool.
    pub(crate) has_second: bool,
    /// That pool forbids version rolling at times.
    pub(crate) may_fix_version: bool,
    pub(crate) upstream_exponent: i32,
    pub(crate) nbits: u32,
    pub(crate) proxy: Settings,
    pub(crate) pool: Settings,
    pub(crate) miners: Vec<Miner>,
    /// Mean seconds between two things that the world does on its own.
    pub(crate) calm: f64,
}

impl Plan {
    pub(crate) fn new(dice: &mut Dice) -> Self {
        let is_foreign = dice.chance(0.5);
        let may_fix_version = is_foreign && dice.chance(0.3);
        let every_share_is_a_block = dice.chance(0.06);
        let proxy = Settings {
            share_use: ShareUse::Forward,
            vardiff_enabled: dice.chance(0.75),
            channel_per_device: dice.chance(0.4),
            ..settings(dice)
        };
        let pool = Settings { share_use: ShareUse::Keep, vardiff_enabled: true, ..settings(dice) };
        let count = if every_share_is_a_block { 4 } else { 4 + dice.below(10) as usize };
        let miners = (0..count)
            .map(|index| {
                let is_direct = !is_foreign && dice.chance(0.3);
                let place = if is_direct { Place::Pool } else { Place::Proxy };
                let rate = 5.0 * 2f64.powf(4.5 * dice.fraction());
                Miner::new(index, place, kind(!may_fix_version, dice), rate)
            })
            .collect();
        Plan {
            is_foreign,
            has_second: dice.chance(0.5),
            may_fix_version,
            upstream_exponent: dice.pick(&[-26, -24, -22, -21]),
            nbits: if every_share_is_a_block { ALL_BLOCKS } else { SOME_BLOCKS },
            proxy,
            pool,
            miners,
            calm: dice.pick(&[3.0, 8.0, 20.0, 60.0]),
        }
    }
}

fn settings(dice: &mut Dice) -> Settings {
    let vardiff = VardiffConfig {
        shares_per_minute: dice.pick(&[4.0, 8.0, 20.0]),
        minimum_exponent: -30,
        initial_exponent: dice.pick(&[-27, -25, -23, -21]),
    };
    vardiff.validate().expect("values in range");
    Settings {
        share_use: ShareUse::Keep,
        vardiff_enabled: true,
        minimum_is_firm: false,
        vardiff,
        channel_per_device: false,
        proxy_protocol: false,
        share_batch_size: dice.pick(&[1, 1, 3, 10, 100]),
    }
}

/// Devices that roll the version whatever a job says are left out where jobs forbid it.
fn kind(rolls_version: bool, dice: &mut Dice) -> Kind {
    match dice.below(10) {
        0 => Kind::Sv2(Model::BitaxeExtended { rolls_version }),
        1 => Kind::Sv2(Model::BitaxeStandard { rolls_version }),
        2 => Kind::Sv2(Model::MiningDevice),
        3 => Kind::Sv2(Model::Proxy),
        _ => Kind::Sv1(dialect(dice)),
    }
}

fn dialect(dice: &mut Dice) -> Dialect {
    let restarts = dice.chance(0.3);
    Dialect {
        mask: dice.pick(&[Some(0x1fff_e000), Some(0x1fff_e000), Some(0x00c0_0000), None]),
        authorizes_first: dice.chance(0.2),
        is_hasty: dice.chance(0.4),
        is_lazy: dice.chance(0.3),
        restarts,
        // Who moves the time on and starts with the same extranonce2 again hashes some headers twice.
        rolls_time: !restarts && dice.chance(0.4),
        stutters: dice.chance(0.1),
        suggests: dice.pick(&[None, None, Some(1e-7), Some(1e-8)]),
        password: dice.pick(&["x", "x", "d=0.0000001", ""]),
    }
}
