//! A share costs no memory: once a connection has carried a tip's worth of them, the next ones allocate nothing, from
//! the bytes of the line to the record and to the encrypted frame for the upstream.
//!
//! Counted by an allocator that counts for each thread, and not asserted of the sockets and queues around the roles.

use std::time::Duration;

use mining_proxy::UpstreamOutput;
use mining_server::sv1::Ahead;
use mining_server::{Fate, Output, Verdict};
use rand::SeedableRng;
use rand::rngs::StdRng;
use stratum::sv2::keys::AuthoritySecretKey;
use stratum::sv2::noise::{Initiator, Responder};
use stratum::sv2::transport::Encryptor;

#[expect(dead_code, reason = "the tests of upstreams need more of it")]
#[path = "../roles/mining-proxy/tests/upstream/rig.rs"]
mod pool;
#[expect(dead_code, reason = "the tests of SV1 connections need more of it")]
#[path = "../roles/mining-server/tests/sv1/support.rs"]
mod sv1;

/// Shares of one tip: more than any device makes at the rates that vardiff allows.
const SHARES: u32 = 6000;

/// Time in which vardiff learns and hash rates change.
const BETWEEN_SHARES: Duration = Duration::from_millis(50);

/// How many allocations `run` makes on this thread.
fn allocations(run: impl FnOnce()) -> u64 {
    allocation_counter::measure(run).count_total
}

/// Submits shares for the miner's newest job, two in each read, which are hashed together. Returns how many were accepted.
fn submit(rig: &mut sv1::Rig, parameters: &(String, u32), out: &mut Output, lines: &mut Vec<u8>) -> u32 {
    let mut accepted = 0;
    for pair in 0..SHARES / 2 {
        lines.clear();
        write_line(lines, parameters, 2 * pair);
        write_line(lines, parameters, 2 * pair + 1);
        rig.now = rig.now.plus(BETWEEN_SHARES);
        let mut ahead = Ahead::default();
        assert_eq!(ahead.read(&rig.connection, lines), 2);
        ahead.hash([(&rig.connection, 2)].into_iter());
        rig.connection.handle_read(lines, ahead.shares(), rig.now, &mut rig.registry, out);
        accepted +=
            out.shares.iter().filter(|share| share.record.verdict == Verdict::Accepted).count() as u32;
        out.bytes.clear();
        out.shares.clear();
        out.events.clear();
    }
    accepted
}

fn write_line(line: &mut Vec<u8>, (job_id, ntime): &(String, u32), nonce: u32) {
    use std::io::Write;
    writeln!(
        line,
        "{{\"params\": [\"account.rig\", \"{job_id}\", \"00000001\", \"{ntime:08x}\", \"{nonce:08x}\", \"00002000\"], \
         \"id\": {nonce}, \"method\": \"mining.submit\"}}"
    )
    .expect("memory takes all of it");
}

#[test]
fn an_accepted_share_of_an_sv1_miner_allocates_nothing() {
    let mut settings = sv1::settings();
    settings.vardiff.initial_exponent = -32;
    let mut rig = sv1::Rig::new(settings);
    rig.source.upstream_exponent = -32;
    rig.source.nbits = 0x1703_a30c;
    rig.job();
    for line in [sv1::CONFIGURE, sv1::SUBSCRIBE, sv1::AUTHORIZE] {
        rig.send(line);
    }
    let (mut out, mut lines) = (Output::default(), Vec::with_capacity(512));
    // The memory that a tip's shares take grows with those of the first.
    for is_counted in [false, true, true] {
        rig.block();
        let (job, _) = rig.jobs.last().expect("a job was sent");
        let parameters = (job.job_id.clone(), job.ntime);
        let mut accepted = 0;
        let counted = allocations(|| accepted = submit(&mut rig, &parameters, &mut out, &mut lines));
        assert_eq!(accepted, SHARES);
        assert!(!is_counted || counted == 0, "{counted} allocations");
    }
}

fn encryptor() -> Encryptor {
    let mut rng = StdRng::seed_from_u64(1);
    let now = 1_790_000_000;
    let authority = AuthoritySecretKey::from_bytes([7; 32]).expect("a key");
    let initiator = Initiator::new(Some(&authority.public()), &mut rng);
    let responder = Responder::new(&authority, Duration::from_secs(60), &mut rng);
    let (reply, _) = responder.step(&initiator.first(), now, &mut rng).expect("an answer");
    initiator.finish(&reply, now).expect("a transport").split(0).0
}

#[test]
fn a_forwarded_share_allocates_nothing() {
    let mut rig = pool::Rig::mining();
    let (job, now) = (rig.active(), rig.now);
    let (mut encryptor, mut encrypted) = (encryptor(), Vec::new());
    let mut out = UpstreamOutput::default();
    let mut forwarded = 0;
    let mut forward = |rig: &mut pool::Rig, nonces: std::ops::Range<u32>| {
        for nonce in nonces {
            rig.upstream.handle_share(pool::share(&job, nonce, false, now), now, &mut out);
            encryptor.encrypt_frames(&out.bytes, &mut encrypted).expect("whole frames");
            forwarded += out.records.iter().filter(|record| record.fate == Fate::Forwarded).count();
            out.bytes.clear();
            out.records.clear();
            encrypted.clear();
        }
    };
    forward(&mut rig, 0..SHARES);
    rig.receive(pool::success(pool::CHANNEL, SHARES, SHARES));
    rig.take();
    assert_eq!(allocations(|| forward(&mut rig, SHARES..2 * SHARES)), 0);
    assert_eq!(forwarded, 2 * SHARES as usize);
}
