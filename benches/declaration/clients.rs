//! A job declaration client.

use std::net::SocketAddr;

use checkweigh::clock::Clock;
use rand::rngs::OsRng;
use stratum::RequestId;
use stratum::sv2::codes::job_declaration_flags;
use stratum::sv2::messages::*;
use stratum::sv2::noise::{Initiator, RESPONDER_MESSAGE_SIZE};
use stratum::sv2::transport::{Decryptor, Encryptor};
use stratum::sv2::{AuthoritySecretKey, Message};
use template::outputs::parse_outputs;
use template::{BlockTemplate, JobTemplate, Output};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const EXTRANONCE_SIZE: usize = 16;

pub(crate) fn key() -> AuthoritySecretKey {
    AuthoritySecretKey::from_bytes([7; 32]).expect("a key")
}

/// A client that is set up.
pub(crate) struct Declarer {
    stream: TcpStream,
    encryptor: Encryptor,
    decryptor: Decryptor,
    next_request: u32,
    pub(crate) tag: String,
    pub(crate) kept: Option<(MiningJobToken, Vec<Output>)>,
}

impl Declarer {
    pub(crate) async fn set_up(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.set_nodelay(true).expect("a socket");
        let initiator = Initiator::new(Some(&key().public()), &mut OsRng);
        stream.write_all(&initiator.first()).await.expect("it reads");
        let mut reply = [0; RESPONDER_MESSAGE_SIZE];
        stream.read_exact(&mut reply).await.expect("it answers");
        let now = Clock::start().now().unix_seconds();
        let (encryptor, decryptor) = initiator.finish(&reply, now).expect("authentic").split(1 << 24);
        let (tag, kept) = (String::new(), None);
        let mut declarer = Declarer { stream, encryptor, decryptor, next_request: 1, tag, kept };
        declarer.send(setup()).await;
        let answer = declarer.next().await;
        assert!(matches!(answer, Message::SetupConnectionSuccess(_)), "{answer:?}");
        declarer
    }

    async fn send(&mut self, message: impl Into<Message>) {
        let mut frame = Vec::new();
        message.into().encode_frame(&mut frame).expect("fits");
        self.send_frame(&frame).await;
    }

    pub(crate) async fn send_frame(&mut self, frame: &[u8]) {
        let mut encrypted = Vec::new();
        self.encryptor.encrypt_frames(frame, &mut encrypted).expect("whole frames");
        self.stream.write_all(&encrypted).await.expect("it reads");
    }

    pub(crate) async fn next(&mut self) -> Message {
        // Byte by byte, so that nothing of a second message is lost; answers are short.
        let mut byte = [0];
        loop {
            self.stream.read_exact(&mut byte).await.expect("the connection is open");
            let frame = self.decryptor.next_frame(&mut &byte[..]).expect("authentic");
            if let Some(frame) = frame {
                return Message::decode(frame.header, frame.payload).expect("a message");
            }
        }
    }

    fn request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    pub(crate) async fn token(&mut self) -> (MiningJobToken, Vec<Output>) {
        let request_id = self.request();
        self.send(AllocateMiningJobToken { user_identifier: "account.farm".to_owned(), request_id }).await;
        let answer = self.next().await;
        let Message::AllocateMiningJobTokenSuccess(success) = answer else { panic!("{answer:?}") };
        (success.mining_job_token, parse_outputs(&success.coinbase_outputs).expect("outputs"))
    }

    /// The frame of a declaration that pays what the pool wants.
    pub(crate) fn declaration(
        &mut self,
        template: &BlockTemplate,
        mining_job_token: MiningJobToken,
        outputs: &[Output],
        tag: &[u8],
    ) -> Vec<u8> {
        let coinbase = JobTemplate::of_block_template(template).coinbase(outputs, tag, EXTRANONCE_SIZE);
        let (coinbase_tx_prefix, coinbase_tx_suffix) = coinbase.expect("there is room").declared_parts();
        let declaration = DeclareMiningJob {
            request_id: self.request(),
            mining_job_token,
            version: template.version,
            coinbase_tx_prefix,
            coinbase_tx_suffix,
            wtxid_list: template.transactions.iter().map(|transaction| transaction.wtxid).collect(),
            excess_data: Vec::new(),
        };
        let mut frame = Vec::new();
        Message::from(declaration).encode_frame(&mut frame).expect("fits");
        frame
    }
}

fn setup() -> SetupConnection {
    SetupConnection {
        protocol: Protocol::JobDeclaration,
        min_version: 2,
        max_version: 2,
        flags: job_declaration_flags::DECLARE_TX_DATA,
        endpoint_host: "127.0.0.1".to_owned(),
        endpoint_port: 1,
        vendor: String::new(),
        hardware_version: String::new(),
        firmware: String::new(),
        device_id: String::new(),
    }
}
