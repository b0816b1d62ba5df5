//! One connection of a proxy with the pool stub: handshake, channels, jobs, shares.
//!
//! It never waits: what the socket does not take is kept up to a bound.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use rand::rngs::OsRng;
use stratum::sv2::frame::MAX_PAYLOAD_FROM_MINER;
use stratum::sv2::messages::{
    OpenExtendedMiningChannel, OpenExtendedMiningChannelSuccess, OpenMiningChannelError,
    RequestExtensionsError, SetGroupChannel, SetupConnectionSuccess, SubmitSharesSuccess,
};
use stratum::sv2::noise::INITIATOR_MESSAGE_SIZE;
use stratum::sv2::{AuthoritySecretKey, Decryptor, Encryptor, Frame, Message, Responder};
use stratum::{ChannelId, SequenceNumber};

use super::Pool;
use super::share::{SUBMIT_SHARES_EXTENDED, Share};
use crate::block::{Block, EXTRANONCE_SIZE, unix_now};
use crate::in_flight::ShareKey;

/// Bytes that wait for a proxy at most: a job and a tip for each of 100,000 channels. A proxy that lets more wait
/// is disconnected.
const MAX_UNSENT: usize = 256 * 1024 * 1024;

/// Channels of a proxy at most.
const MAX_CHANNELS: usize = 200_000;

/// How long the certificates of the pool stub are valid.
const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// The group that all channels are in when jobs go to a group (SV2 5.3.22).
const GROUP: ChannelId = ChannelId(0x7fff_ffff);

/// The group that channels are opened in, before they are moved to [`GROUP`]. It never has a job: a proxy that
/// does not follow them mines on an old block.
const FIRST_GROUP: ChannelId = ChannelId(0x7fff_fffe);

/// The connection of one proxy.
pub(super) struct Link {
    stream: TcpStream,
    phase: Phase,
    /// Frames to be encrypted.
    plain: Vec<u8>,
    /// Encrypted bytes that the socket has not taken.
    unsent: Vec<u8>,
    /// By channel id less one.
    channels: Vec<Option<Channel>>,
    /// Channels with shares that are not acknowledged yet.
    touched: Vec<u32>,
}

enum Phase {
    Handshake { responder: Option<Box<Responder>>, received: Vec<u8> },
    Up { encryptor: Box<Encryptor>, decryptor: Box<Decryptor> },
}

struct Channel {
    prefix: [u8; 8],
    /// The newest block that it has a job for.
    job: u32,
    last_sequence_number: u32,
    unacknowledged: u32,
}

impl Link {
    pub(super) fn new(stream: TcpStream, authority: &AuthoritySecretKey) -> Self {
        let responder = Some(Box::new(Responder::new(authority, CERTIFICATE_VALIDITY, &mut OsRng)));
        Link {
            stream,
            phase: Phase::Handshake { responder, received: Vec::new() },
            plain: Vec::new(),
            unsent: Vec::new(),
            channels: Vec::new(),
            touched: Vec::new(),
        }
    }

    pub(super) const fn stream_mut(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Reads and answers all that has come.
    pub(super) fn read(&mut self, pool: &mut Pool, buffer: &mut [u8]) -> io::Result<()> {
        loop {
            let length = match self.stream.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.take(pool, &buffer[..length])?;
            self.acknowledge()?;
            self.flush()?;
            // A short read has emptied the socket, and what comes later is a new event.
            if length < buffer.len() {
                break;
            }
        }
        Ok(())
    }

    fn take(&mut self, pool: &mut Pool, mut bytes: &[u8]) -> io::Result<()> {
        if let Phase::Handshake { responder, received } = &mut self.phase {
            let missing = INITIATOR_MESSAGE_SIZE - received.len();
            let (taken, rest) = bytes.split_at(missing.min(bytes.len()));
            received.extend_from_slice(taken);
            bytes = rest;
            let Ok(first) = <&[u8; INITIATOR_MESSAGE_SIZE]>::try_from(received.as_slice()) else {
                return Ok(());
            };
            let responder = responder.take().expect("it is taken once, and the phase ends with it");
            let (reply, transport) =
                responder.step(first, unix_now(), &mut OsRng).map_err(io::Error::other)?;
            self.unsent.extend_from_slice(&reply);
            let (encryptor, decryptor) = transport.split(MAX_PAYLOAD_FROM_MINER);
            self.phase = Phase::Up { encryptor: Box::new(encryptor), decryptor: Box::new(decryptor) };
        }
        let now = Instant::now();
        let Link { phase: Phase::Up { decryptor, .. }, plain, channels, touched, .. } = self else {
            return Ok(());
        };
        let mut desk = Desk { plain, channels, touched };
        while let Some(frame) = decryptor.next_frame(&mut bytes).map_err(io::Error::other)? {
            if frame.header.message_type == SUBMIT_SHARES_EXTENDED && frame.header.extension_type == 0 {
                desk.handle_share(pool, frame.payload, now);
            } else {
                desk.handle_message(pool, &frame)?;
            }
        }
        Ok(())
    }

    /// Acknowledges the shares of each channel with one message.
    fn acknowledge(&mut self) -> io::Result<()> {
        for id in self.touched.drain(..) {
            let Some(Some(channel)) = self.channels.get_mut(id as usize - 1) else { continue };
            let count = std::mem::take(&mut channel.unacknowledged);
            let message = SubmitSharesSuccess {
                channel_id: ChannelId(id),
                last_sequence_number: SequenceNumber(channel.last_sequence_number),
                new_submits_accepted_count: count,
                new_shares_sum: u64::from(count),
            };
            append(&mut self.plain, message)?;
        }
        Ok(())
    }

    /// Queues the job of a block for every channel that does not have it yet.
    pub(super) fn send_job(&mut self, pool: &Pool, block: &Block) -> io::Result<()> {
        let mut sent_to_group = false;
        for (id, channel) in open_channels(&mut self.channels) {
            if channel.job == block.number {
                continue;
            }
            channel.job = block.number;
            match pool.grouped {
                true if sent_to_group => continue,
                true => append(&mut self.plain, block.job_message(GROUP))?,
                false => append(&mut self.plain, block.job_message(id))?,
            }
            sent_to_group = true;
        }
        self.encrypt()
    }

    /// Queues the tip of a block whose job every channel has.
    pub(super) fn send_tip(&mut self, pool: &Pool, block: &Block) -> io::Result<()> {
        if pool.grouped {
            append(&mut self.plain, block.tip_message(GROUP))?;
        } else {
            for (id, _) in open_channels(&mut self.channels) {
                append(&mut self.plain, block.tip_message(id))?;
            }
        }
        self.encrypt()
    }

    /// Encrypts what is queued and writes what the socket takes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.encrypt()?;
        let mut written = 0;
        while written < self.unsent.len() {
            match self.stream.write(&self.unsent[written..]) {
                Ok(length) => written += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.unsent.drain(..written);
        if self.unsent.len() > MAX_UNSENT {
            return Err(io::Error::other("the proxy reads too slowly"));
        }
        Ok(())
    }

    fn encrypt(&mut self) -> io::Result<()> {
        let Link { phase: Phase::Up { encryptor, .. }, plain, unsent, .. } = self else { return Ok(()) };
        if !plain.is_empty() {
            encryptor.encrypt_frames(plain, unsent).map_err(io::Error::other)?;
            plain.clear();
        }
        Ok(())
    }
}

/// What a frame may change: all of a link but its socket and its keys.
struct Desk<'a> {
    plain: &'a mut Vec<u8>,
    channels: &'a mut Vec<Option<Channel>>,
    touched: &'a mut Vec<u32>,
}

impl Desk<'_> {
    fn handle_share(&mut self, pool: &mut Pool, payload: &[u8], now: Instant) {
        let share = Share::read(payload);
        let channel = share.and_then(|share| {
            let channel = self.channels.get_mut((share.channel as usize).checked_sub(1)?)?.as_mut()?;
            Some((share, channel))
        });
        // A share of a channel that was just closed is received all the same.
        pool.counts.received();
        let Some((share, channel)) = channel else {
            pool.counts.on_no_channel();
            return;
        };
        if let Some(key) = ShareKey::sampled(share.extranonce2(), share.nonce) {
            pool.in_flight.received(key, now);
        }
        pool.verify(&share, &channel.prefix);
        channel.last_sequence_number = share.sequence_number;
        if channel.unacknowledged == 0 {
            self.touched.push(share.channel);
        }
        channel.unacknowledged += 1;
    }

    fn handle_message(&mut self, pool: &mut Pool, frame: &Frame<'_>) -> io::Result<()> {
        match Message::decode(frame.header, frame.payload).map_err(io::Error::other)? {
            Message::SetupConnection(_) => {
                pool.counts.set_up();
                append(self.plain, SetupConnectionSuccess { used_version: 2, flags: 0 })
            }
            Message::RequestExtensions(request) => {
                let refusal = RequestExtensionsError {
                    request_id: request.request_id,
                    unsupported_extensions: request.requested_extensions,
                    required_extensions: Vec::new(),
                };
                append(self.plain, refusal)
            }
            Message::OpenExtendedMiningChannel(request) => self.open(pool, &request),
            Message::CloseChannel(message) => {
                let slot = self.channels.get_mut((message.channel_id.0 as usize).wrapping_sub(1));
                if slot.and_then(Option::take).is_some() {
                    pool.counts.channel_closed();
                }
                Ok(())
            }
            // A hash rate changes nothing here: the target is the same for all channels.
            _ => Ok(()),
        }
    }

    /// Opens a channel, and starts the newest block on it as a pool does: a future job, then its tip.
    fn open(&mut self, pool: &mut Pool, request: &OpenExtendedMiningChannel) -> io::Result<()> {
        let request_id = request.request_id;
        if usize::from(request.min_extranonce_size) > EXTRANONCE_SIZE || self.channels.len() >= MAX_CHANNELS {
            let error_code = "unsupported-min-extranonce-size".to_owned();
            return append(self.plain, OpenMiningChannelError { request_id, error_code });
        }
        let prefix = pool.next_prefix();
        let block = Arc::clone(&pool.block);
        let channel = Channel { prefix, job: block.number, last_sequence_number: 0, unacknowledged: 0 };
        self.channels.push(Some(channel));
        let channel_id = ChannelId(self.channels.len() as u32);
        let success = OpenExtendedMiningChannelSuccess {
            request_id,
            channel_id,
            target: pool.target,
            extranonce_size: EXTRANONCE_SIZE as u16,
            extranonce_prefix: prefix.to_vec(),
            group_channel_id: if pool.grouped { FIRST_GROUP } else { ChannelId(0) },
        };
        append(self.plain, success)?;
        if pool.grouped {
            append(self.plain, SetGroupChannel { group_channel_id: GROUP, channel_ids: vec![channel_id] })?;
        }
        append(self.plain, block.job_message(channel_id))?;
        append(self.plain, block.tip_message(channel_id))?;
        pool.counts.channel_opened();
        Ok(())
    }
}

fn open_channels(channels: &mut [Option<Channel>]) -> impl Iterator<Item = (ChannelId, &mut Channel)> {
    let numbered = channels.iter_mut().enumerate();
    numbered.filter_map(|(index, channel)| Some((ChannelId(index as u32 + 1), channel.as_mut()?)))
}

fn append(plain: &mut Vec<u8>, message: impl Into<Message>) -> io::Result<()> {
    message.into().encode_frame(plain).map_err(io::Error::other)
}
