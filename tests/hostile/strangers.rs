//! Junk, and more of what looks good than any miner sends, while others mine.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use checkweigh::shutdown::shutdown;
use stratum::sv1::line::LineBuffer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{interval, timeout};

use crate::attack::{HELLO, HTTP_GET, TLS_HELLO, closed_after, closed_after_frame, encrypted, read_to_close};
use crate::farm::{self, DEADLINE, Running};
use crate::sv1_miner::{Miner, MinerOptions};

/// Shares take about 4096 hashes, and blocks so many that none is found.
const SHARE_EXPONENT: i32 = -20;

/// Submissions of one flood.
const FLOOD: usize = 20_000;

/// A pool and a proxy, with an honest miner on each.
struct Site {
    pool: Running,
    proxy: Running,
    miners: [Miner; 2],
    _stop: checkweigh::shutdown::ShutdownTrigger,
}

impl Site {
    async fn start() -> Self {
        let chain = farm::chain(1 << 50);
        let pool = farm::start_pool(&chain, farm::fixed(SHARE_EXPONENT), None);
        let proxy = farm::start_proxy(pool.sv2, true, farm::fixed(SHARE_EXPONENT));
        let (stop, end) = shutdown();
        let miner = |server: SocketAddr, user: &str| {
            let pause = Some(Duration::from_millis(20));
            Miner::start(MinerOptions { server, user: user.to_owned(), window: 4, pause }, end.clone())
        };
        let miners = [miner(proxy.sv1, "honest.proxy"), miner(pool.sv1, "honest.pool")];
        let mut site = Site { pool, proxy, miners, _stop: stop };
        site.honest_miners_go_on().await;
        site
    }

    /// Waits for more shares of the honest miners; every answer until then was right.
    async fn honest_miners_go_on(&mut self) {
        for miner in &mut self.miners {
            let before = miner.seen();
            let is_met = |seen: &crate::sv1_miner::Seen| seen.accepted >= before.accepted + 10;
            let seen = miner.wait_for("honest shares are accepted", DEADLINE, is_met).await;
            assert_eq!(seen.stale, 0, "there was no new block");
        }
    }

    fn faults(&self) -> u64 {
        let faults = |role: &Running| role.observed.counts.closed_for_fault.load(Ordering::Relaxed);
        faults(&self.pool) + faults(&self.proxy)
    }

    /// Waits until only the honest are connected, and checks that nothing of ours broke.
    async fn only_the_honest_are_left(&self) {
        let mut poll = interval(Duration::from_millis(20));
        let left = async {
            loop {
                let (pool, proxy) = (&self.pool.observed.counts, &self.proxy.observed.counts);
                let open =
                    [&pool.sv1, &pool.sv2, &proxy.sv1, &proxy.sv2].map(|count| count.load(Ordering::Relaxed));
                if open == [1, 1, 1, 0] {
                    return;
                }
                poll.tick().await;
            }
        };
        timeout(DEADLINE, left).await.expect("those who were closed are gone");
        for role in [&self.pool, &self.proxy] {
            assert_eq!(role.observed.counts.panicked.load(Ordering::Relaxed), 0);
            assert_eq!(role.totals().await.violation(), None);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_on_the_sv1_port_are_closed_and_nobody_else_notices() {
    let mut site = Site::start().await;
    let long_line = [b"{\"id\":\"".as_slice(), &[b'x'; 5000], b"\"}\n"].concat();
    let endless_line = [b"{\"id\":\"".as_slice(), &[b'x'; 200_000]].concat();
    let long_id = [b"{\"id\":\"".as_slice(), &[b'x'; 300], b"\",\"method\":\"mining.ping\"}\n"].concat();
    let junk_after_hello = [HELLO, b"\xff\xfe\x00 no JSON\n"].concat();
    let deep = [b"{\"id\":".as_slice(), &[b'['; 4000], b"\n"].concat();
    let attacks: [&[u8]; 8] =
        [TLS_HELLO, HTTP_GET, b"\0", &long_line, &endless_line, &long_id, &junk_after_hello, &deep];
    for address in [site.proxy.sv1, site.pool.sv1] {
        for attack in attacks {
            let before = site.faults();
            closed_after(address, attack).await;
            site.faults_reach(before + 1).await;
        }
    }
    let answer = closed_after(site.proxy.sv1, &junk_after_hello).await;
    assert!(answer.starts_with(b"{\"id\":1,"), "what came before the junk is answered");
    site.only_the_honest_are_left().await;
    site.honest_miners_go_on().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_on_the_sv2_port_are_closed_and_nobody_else_notices() {
    let mut site = Site::start().await;
    let plain_http = [HTTP_GET, HTTP_GET].concat();
    let tls = [TLS_HELLO, &[0; 500]].concat();
    let lines = HELLO.repeat(4);
    for address in [site.proxy.sv2, site.pool.sv2] {
        let before = site.faults();
        for junk in [&plain_http, &tls, &lines] {
            closed_after(address, junk).await;
        }
        // A message that only a server sends, junk in a message, and one that comes before the connection is set up.
        closed_after_frame(address, 0x01, &[2, 0, 0, 0, 0, 0]).await;
        closed_after_frame(address, 0x00, &[0xff; 40]).await;
        closed_after_frame(address, 0x1b, &[0; 24]).await;
        closed_after_frame(address, 0x00, &[0; 60_000]).await;
        let (mut stream, mut encryptor) = encrypted(address).await;
        let mut bytes = Vec::new();
        encryptor.encrypt_frames(&[0; 6], &mut bytes).expect("an empty frame");
        bytes[3] ^= 1;
        let _ = stream.write_all(&bytes).await;
        read_to_close(&mut stream).await;
        site.faults_reach(before + 8).await;
    }
    site.only_the_honest_are_left().await;
    site.honest_miners_go_on().await;
}

/// Shares that look good and are not, as fast as they are taken, by four connections to each port.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_shares_is_answered_and_counted_and_nobody_else_notices() {
    let mut site = Site::start().await;
    let mut floods = tokio::task::JoinSet::new();
    for address in [site.proxy.sv1, site.pool.sv1].repeat(4) {
        floods.spawn(flood(address));
    }
    site.honest_miners_go_on().await;
    while let Some(flooded) = floods.join_next().await {
        flooded.expect("every submission is answered");
    }
    site.honest_miners_go_on().await;
    site.only_the_honest_are_left().await;
    for role in [&site.pool, &site.proxy] {
        let flooded = 4 * FLOOD as u64;
        role.wait_for("all are counted", |totals| totals.shares.rejected_total() >= flooded).await;
        assert_eq!(role.totals().await.shares.rejected_total(), flooded, "no honest share was refused");
    }
}

/// Submits for a job that never was, and counts the answers.
async fn flood(address: SocketAddr) {
    let stream = TcpStream::connect(address).await.expect("the listener accepts");
    let (mut reader, mut writer) = stream.into_split();
    let sender = tokio::spawn(async move {
        writer.write_all(HELLO).await.expect("it is read");
        let mut batch = Vec::new();
        for number in 0..FLOOD {
            let line = format!(
                "{{\"id\":9,\"method\":\"mining.submit\",\"params\":[\"account.flood\",\"7\",\"{number:08x}\",\
                 \"6a000000\",\"{number:08x}\"]}}\n"
            );
            batch.extend_from_slice(line.as_bytes());
            if batch.len() > 8192 || number + 1 == FLOOD {
                writer.write_all(&batch).await.expect("it is read");
                batch.clear();
            }
        }
        writer
    });
    let mut lines = LineBuffer::default();
    let mut buffer = vec![0; 16 * 1024];
    let counted = timeout(DEADLINE, async {
        let mut count = 0;
        while count < FLOOD {
            let length = reader.read(&mut buffer).await.expect("it stays open");
            assert!(length > 0, "it stays open");
            let mut bytes = &buffer[..length];
            while let Some(line) = lines.next_line(&mut bytes).expect("answers are lines") {
                count += usize::from(line.starts_with(b"{\"id\":9,"));
            }
        }
    });
    counted.await.expect("every submission is answered in time");
    drop(sender.await.expect("everything was sent"));
}

impl Site {
    async fn faults_reach(&self, count: u64) {
        let mut poll = interval(Duration::from_millis(5));
        let reached = async {
            while self.faults() < count {
                poll.tick().await;
            }
        };
        timeout(DEADLINE, reached).await.expect("a close for a fault is counted");
    }
}
