//! An SV2 pool that does what a test says, message by message, and hashes every share that reaches it.
//!
//! It has no chain: its blocks are made up, and its network target is out of reach.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::rngs::OsRng;
use stratum::sv2::messages::*;
use stratum::sv2::noise::{INITIATOR_MESSAGE_SIZE, Responder};
use stratum::sv2::transport::{Decryptor, Encryptor};
use stratum::sv2::{AuthoritySecretKey, Message};
use stratum::{ChannelId, JobId, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::sv2_device::{sha256d, unix_now};

const DEADLINE: Duration = Duration::from_secs(60);

/// Bytes that channels may roll.
const EXTRANONCE_SIZE: usize = 12;

/// Difficulty 16 billion: nothing here is a block.
const NBITS: u32 = 0x1903_a30c;

/// Where it listens. A new connection is a new [`Link`].
pub(crate) struct ScriptedPool {
    listener: TcpListener,
    key: AuthoritySecretKey,
}

/// A connection with a proxy.
pub(crate) struct Link {
    stream: TcpStream,
    encryptor: Encryptor,
    decryptor: Decryptor,
    messages: VecDeque<Message>,
    channels: BTreeMap<ChannelId, Channel>,
    tip: Option<[u8; 32]>,
}

struct Channel {
    group: ChannelId,
    prefix: Vec<u8>,
    target: Target,
    jobs: HashMap<JobId, Job>,
}

/// A job of one channel, with what was in force when it came and when it was started.
struct Job {
    message: NewExtendedMiningJob,
    prefix: Vec<u8>,
    target: Target,
    tip: Option<[u8; 32]>,
    shares: usize,
}

impl ScriptedPool {
    pub(crate) async fn start(key: AuthoritySecretKey) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port can be listened on");
        ScriptedPool { listener, key }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("it listens")
    }

    /// Takes the next connection and accepts its setup.
    pub(crate) async fn accept(&self) -> Link {
        let accepted = timeout(DEADLINE, self.listener.accept()).await.expect("the proxy dials in time");
        let (mut stream, _) = accepted.expect("connections can be accepted");
        stream.set_nodelay(true).expect("the connection is open");
        let mut first = [0; INITIATOR_MESSAGE_SIZE];
        stream.read_exact(&mut first).await.expect("the proxy shakes hands");
        let responder = Responder::new(&self.key, DEADLINE, &mut OsRng);
        let (reply, transport) = responder.step(&first, unix_now(), &mut OsRng).expect("a handshake");
        stream.write_all(&reply).await.expect("the connection is open");
        let (encryptor, decryptor) = transport.split(4096);
        let mut link = Link {
            stream,
            encryptor,
            decryptor,
            messages: VecDeque::new(),
            channels: BTreeMap::new(),
            tip: None,
        };
        let Message::SetupConnection(_) = link.next().await else { panic!("a proxy sets up first") };
        link.send(SetupConnectionSuccess { used_version: 2, flags: 0 }).await;
        link
    }
}

impl Link {
    /// Opens `count` channels, the first with the id `first`, in `group`. Each prefix is `prefix` and its id.
    pub(crate) async fn open(
        &mut self,
        count: usize,
        first: u32,
        group: ChannelId,
        prefix: &[u8],
        target: Target,
    ) {
        for number in 0..count as u32 {
            let request = loop {
                match self.next().await {
                    Message::OpenExtendedMiningChannel(request) => break request,
                    Message::UpdateChannel(_) | Message::CloseChannel(_) => {}
                    Message::SubmitSharesExtended(share) => self.judge(&share).await,
                    Message::RequestExtensions(request) => self.refuse_extensions(request).await,
                    other => panic!("instead of a request for a channel: {other:?}"),
                }
            };
            let id = ChannelId(first + number);
            let prefix = own_prefix(prefix, id);
            let success = OpenExtendedMiningChannelSuccess {
                request_id: request.request_id,
                channel_id: id,
                target,
                extranonce_size: EXTRANONCE_SIZE as u16,
                extranonce_prefix: prefix.clone(),
                group_channel_id: group,
            };
            self.channels.insert(id, Channel { group, prefix, target, jobs: HashMap::new() });
            self.send(success).await;
        }
    }

    async fn refuse_extensions(&mut self, request: RequestExtensions) {
        let (request_id, unsupported_extensions) = (request.request_id, request.requested_extensions);
        let required_extensions = Vec::new();
        self.send(RequestExtensionsError { request_id, unsupported_extensions, required_extensions }).await;
    }

    /// Sends a job to a channel or group: a future one, or one to start at once.
    pub(crate) async fn job(&mut self, address: ChannelId, id: u32, is_future: bool) {
        let message = NewExtendedMiningJob {
            channel_id: address,
            job_id: JobId(id),
            min_ntime: (!is_future).then(unix_now),
            version: 0x2000_0000,
            version_rolling_allowed: true,
            merkle_path: vec![[id as u8; 32], [0x5a; 32]],
            coinbase_tx_prefix: vec![1; 60],
            coinbase_tx_suffix: vec![id as u8; 90],
        };
        let tip = self.tip.filter(|_| !is_future);
        for channel in self.addressed(address) {
            let (prefix, target) = (channel.prefix.clone(), channel.target);
            let job = Job { message: message.clone(), prefix, target, tip, shares: 0 };
            channel.jobs.insert(JobId(id), job);
        }
        self.send(message).await;
    }

    /// Starts a future job of a channel or group on a new block.
    pub(crate) async fn tip(&mut self, address: ChannelId, id: u32, block: u8) {
        let (job_id, prev_hash) = (JobId(id), [block; 32]);
        self.tip = Some(prev_hash);
        for channel in self.addressed(address) {
            let target = channel.target;
            // Jobs on an older block may still have shares on their way, which are stale.
            channel.jobs.retain(|known, job| *known == job_id || job.tip.is_some());
            let job = channel.jobs.get_mut(&job_id).expect("the script sent the job");
            (job.tip, job.target) = (Some(prev_hash), target);
        }
        self.send(SetNewPrevHash {
            channel_id: address,
            job_id,
            prev_hash,
            min_ntime: unix_now(),
            nbits: NBITS,
        })
        .await;
    }

    /// Sets the target of the jobs of a channel or group that start from now on.
    pub(crate) async fn set_target(&mut self, address: ChannelId, target: Target) {
        self.addressed(address).for_each(|channel| channel.target = target);
        self.send(SetTarget { channel_id: address, maximum_target: target }).await;
    }

    /// Sets the prefix of every channel for the jobs that it is sent from now on.
    pub(crate) async fn set_prefixes(&mut self, prefix: &[u8]) {
        let ids: Vec<_> = self.channels.keys().copied().collect();
        for id in ids {
            let extranonce_prefix = own_prefix(prefix, id);
            self.addressed(id).for_each(|channel| channel.prefix = extranonce_prefix.clone());
            self.send(SetExtranoncePrefix { channel_id: id, extranonce_prefix }).await;
        }
    }

    /// Puts every channel into another group.
    pub(crate) async fn regroup(&mut self, group: ChannelId) {
        self.channels.values_mut().for_each(|channel| channel.group = group);
        let channel_ids = self.channels.keys().copied().collect();
        self.send(SetGroupChannel { group_channel_id: group, channel_ids }).await;
    }

    /// Closes every channel of a group.
    pub(crate) async fn close(&mut self, group: ChannelId) {
        self.channels.clear();
        self.send(CloseChannel { channel_id: group, reason_code: "maintenance".to_owned() }).await;
    }

    /// Reads until every channel has sent `count` valid shares of a job.
    pub(crate) async fn wait_for_shares(&mut self, job: u32, count: usize) {
        let shares = |channel: &Channel| channel.jobs.get(&JobId(job)).map_or(0, |job| job.shares);
        while self.channels.values().any(|channel| shares(channel) < count) {
            match self.next().await {
                Message::SubmitSharesExtended(share) => self.judge(&share).await,
                Message::UpdateChannel(_) => {}
                other => panic!("instead of a share: {other:?}"),
            }
        }
    }

    pub(crate) async fn send(&mut self, message: impl Into<Message>) {
        let (mut frame, mut encrypted) = (Vec::new(), Vec::new());
        message.into().encode_frame(&mut frame).expect("the script's messages are encodable");
        self.encryptor.encrypt_frames(&frame, &mut encrypted).expect("whole frames");
        self.stream.write_all(&encrypted).await.expect("the proxy stays connected");
    }

    /// Hashes a share by what was in force for its job, and answers it.
    async fn judge(&mut self, share: &SubmitSharesExtended) {
        let (channel_id, sequence_number) = (share.channel_id, share.sequence_number);
        let tip = self.tip;
        // A channel that was just closed may still have shares on their way.
        let Some(channel) = self.channels.get_mut(&channel_id) else { return };
        let job = channel.jobs.get_mut(&share.job_id).expect("a share is for a job that was sent");
        assert_eq!(share.extranonce.len(), EXTRANONCE_SIZE);
        let message = &job.message;
        let coinbase =
            [&message.coinbase_tx_prefix, &job.prefix, &share.extranonce, &message.coinbase_tx_suffix];
        let coinbase = coinbase.map(Vec::as_slice).concat();
        let root = message
            .merkle_path
            .iter()
            .fold(sha256d(&coinbase), |root, node| sha256d(&[root, *node].concat()));
        let built_on = job.tip.expect("a share is for a job that was started");
        let mut header = share.version.to_le_bytes().to_vec();
        header.extend_from_slice(&built_on);
        header.extend_from_slice(&root);
        for number in [share.ntime, NBITS, share.nonce] {
            header.extend_from_slice(&number.to_le_bytes());
        }
        let hash = Target::from_le_bytes(sha256d(&header));
        assert!(hash <= job.target, "job {}: {hash:?} misses {:?}", share.job_id, job.target);
        if Some(built_on) == tip {
            job.shares += 1;
            let (last_sequence_number, new_submits_accepted_count) = (sequence_number, 1);
            let success = SubmitSharesSuccess {
                channel_id,
                last_sequence_number,
                new_submits_accepted_count,
                new_shares_sum: 1,
            };
            self.send(success).await;
        } else {
            let error_code = "stale-share".to_owned();
            self.send(SubmitSharesError { channel_id, sequence_number, error_code }).await;
        }
    }

    fn addressed(&mut self, address: ChannelId) -> impl Iterator<Item = &mut Channel> {
        let is_addressed =
            move |(id, channel): &(&ChannelId, &mut Channel)| **id == address || channel.group == address;
        self.channels.iter_mut().filter(is_addressed).map(|(_, channel)| channel)
    }

    async fn next(&mut self) -> Message {
        let mut buffer = [0; 4096];
        loop {
            if let Some(message) = self.messages.pop_front() {
                return message;
            }
            let read =
                timeout(DEADLINE, self.stream.read(&mut buffer)).await.expect("the proxy speaks in time");
            let length = read.expect("the connection can be read");
            assert_ne!(length, 0, "the proxy hung up");
            let mut input = &buffer[..length];
            while let Some(frame) = self.decryptor.next_frame(&mut input).expect("the proxy's frames decrypt")
            {
                let message = Message::decode(frame.header, frame.payload).expect("the proxy's messages are");
                self.messages.push_back(message);
            }
        }
    }
}

fn own_prefix(prefix: &[u8], channel: ChannelId) -> Vec<u8> {
    [prefix, &channel.0.to_be_bytes()].concat()
}
