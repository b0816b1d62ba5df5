//! Templates from a template provider over SV2 (SV2 7).
//!
//! The protocol is `template::provider::ProviderClient`'s; here are only the socket, the redials and the timer. A
//! provider whose node went away often accepts a client and then dies: it is dialled again like any other.

use std::time::Duration;

use mining_proxy::Backoff;
use rand::RngCore;
use rand::rngs::OsRng;
use stratum::sv2::frame::MAX_PAYLOAD_FROM_TEMPLATE_PROVIDER;
use stratum::sv2::url::PoolUrl;
use template::provider::{ProviderClient, ProviderClientOutput};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::TemplateOutlet;
use crate::clock::Clock;
use crate::node::submitter::{SourceBlock, SourceVerdict};
use crate::shutdown::Shutdown;
use crate::sv2_transport::{Sv2Stream, dial};

/// A provider gives a template at once (SV2 7). One that has none after this long is dialled again.
const FIRST_TEMPLATE_DEADLINE: Duration = Duration::from_secs(60);

/// How long the provider may take to read what we write, a block's coinbase at most.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// Bytes read at once: answers with transactions have megabytes.
const READ_BUFFER: usize = 64 * 1024;

/// Hands the provider's templates to `outlet` until the end is asked for, and takes `blocks` to it.
pub async fn run_sv2_source(
    url: PoolUrl,
    outlet: TemplateOutlet,
    blocks: mpsc::Receiver<SourceBlock>,
    mut shutdown: Shutdown,
) {
    let name = format!("{}:{}", url.host, url.port);
    let clock = outlet.clock();
    let mut source = Source { url, name, outlet, blocks, clock, redirect: None };
    tokio::select! {
        () = shutdown.requested() => {}
        () = source.run() => unreachable!("the source runs until it is stopped"),
    }
}

struct Source {
    url: PoolUrl,
    name: String,
    outlet: TemplateOutlet,
    blocks: mpsc::Receiver<SourceBlock>,
    clock: Clock,
    /// Where the provider asked us to go, tried once.
    redirect: Option<(String, u16)>,
}

/// One connection.
struct Link {
    client: ProviderClient,
    out: ProviderClientOutput,
    transport: Sv2Stream,
    encrypted: Vec<u8>,
    buffer: Vec<u8>,
    has_template: bool,
}

impl Source {
    async fn run(&mut self) {
        let mut backoff = Backoff::new();
        loop {
            let mut url = self.url.clone();
            if let Some((host, port)) = self.redirect.take() {
                (url.host, url.port) = (host, port);
            }
            let reason = match dial(&url, MAX_PAYLOAD_FROM_TEMPLATE_PROVIDER, self.clock).await {
                Ok(transport) => {
                    tracing::info!(provider = self.name, "connected to the template provider");
                    backoff.connected(self.clock.now());
                    self.follow(transport, &url).await
                }
                Err(reason) => reason,
            };
            self.outlet.failed();
            let delay = backoff.failed(self.clock.now(), OsRng.next_u32());
            let seconds = delay.as_secs_f32();
            tracing::warn!(
                provider = self.name,
                "no templates: {reason}; the last one stays in use; dialling again in {seconds:.1} s"
            );
            self.wait_without(delay).await;
        }
    }

    /// Refuses blocks and listens to users until it is time to dial again.
    async fn wait_without(&mut self, delay: Duration) {
        let until = Instant::now() + delay;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                () = self.outlet.work() => {}
                Some(block) = self.blocks.recv() => {
                    // Who no longer waits has the answer of the node itself.
                    let _ = block.answer.send(SourceVerdict::Away("the template provider is away"));
                }
            }
        }
    }

    /// Serves one connection, which leads to `url`, to its end; says why it ended.
    async fn follow(&mut self, transport: Sv2Stream, url: &PoolUrl) -> String {
        let mut out = ProviderClientOutput::default();
        let client = ProviderClient::connected(&url.host, url.port, self.outlet.constraints(), &mut out);
        let mut link = Link {
            client,
            out,
            transport,
            encrypted: Vec::new(),
            buffer: vec![0; READ_BUFFER],
            has_template: false,
        };
        let deadline = Instant::now() + FIRST_TEMPLATE_DEADLINE;
        loop {
            if let Err(reason) = self.settle(&mut link).await {
                return reason;
            }
            tokio::select! {
                biased;
                Some(block) = self.blocks.recv() => link.submit(block),
                read = link.transport.stream.read(&mut link.buffer) => match read {
                    Ok(0) => return "the provider closed the connection".to_owned(),
                    Ok(length) => link.handle_read(length, self.clock),
                    Err(error) => return error.to_string(),
                },
                () = self.outlet.work() => {
                    link.client.set_constraints(self.outlet.constraints(), &mut link.out);
                }
                () = tokio::time::sleep_until(deadline), if !link.has_template => {
                    return "the provider gives no template".to_owned();
                }
            }
        }
    }

    /// Hands on what came, and writes what is to be written.
    async fn settle(&mut self, link: &mut Link) -> Result<(), String> {
        for notice in link.out.notices.drain(..) {
            tracing::info!(provider = self.name, "{notice}");
        }
        for template in link.out.templates.drain(..) {
            if !link.has_template {
                tracing::info!(
                    provider = self.name,
                    height = template.height,
                    "the template provider serves templates"
                );
                link.has_template = true;
            }
            self.outlet.offer(template);
        }
        link.encrypted.clear();
        let (frames, encrypted) = (&link.out.bytes, &mut link.encrypted);
        link.transport.encryptor.encrypt_frames(frames, encrypted).map_err(|error| error.to_string())?;
        link.out.bytes.clear();
        if !link.encrypted.is_empty() {
            let write = link.transport.stream.write_all(&link.encrypted);
            match tokio::time::timeout(WRITE_DEADLINE, write).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err("the provider does not read".to_owned()),
            }
        }
        self.redirect = link.out.reconnect_to.take();
        link.out.close.take().map_or(Ok(()), |reason| Err(reason.what))
    }
}

impl Link {
    fn handle_read(&mut self, length: usize, clock: Clock) {
        let now = clock.now();
        let mut input = &self.buffer[..length];
        while self.out.close.is_none() {
            // Long answers are expected as soon as they are asked for.
            self.transport.decryptor.set_max_payload(self.client.max_payload());
            match self.transport.decryptor.next_frame(&mut input) {
                Ok(None) => return,
                Ok(Some(frame)) => {
                    self.client.handle_frame(frame.header, frame.payload, now, &mut self.out);
                }
                Err(error) => {
                    self.out.close = Some(stratum::CloseReason::upstream(error.to_string()));
                }
            }
        }
    }

    fn submit(&mut self, block: SourceBlock) {
        let SourceBlock { bytes, answer } = block;
        let verdict = match self.client.submit(&bytes, &mut self.out) {
            true => SourceVerdict::Sent,
            false => SourceVerdict::NotSent("the block is on no template of this connection"),
        };
        // Who no longer waits has the answer of the node itself.
        let _ = answer.send(verdict);
    }
}
