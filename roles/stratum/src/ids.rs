//! Identifiers as types of their own, so that the compiler tells a channel from a job and an upstream's id
//! from a downstream's.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id!(
    /// A mining channel that we opened for a downstream, unique on its connection (SV2 5.1). 0 stands for the
    /// one implicit channel of an SV1 connection.
    ChannelId(u32)
);
id!(
    /// A job as an SV2 downstream of ours knows it: the low 32 bits of the job's [`JobNumber`].
    JobId(u32)
);
id!(
    /// A mining channel as our upstream numbers it.
    UpstreamChannelId(u32)
);
id!(
    /// A job as our upstream numbers it.
    UpstreamJobId(u32)
);
id!(
    /// A request of a downstream or of ours that waits for its answer (SV2 `request_id`).
    RequestId(u32)
);
id!(
    /// A block template, before it is a job.
    TemplateId(u64)
);
id!(
    /// The number of a submission within its SV2 channel.
    SequenceNumber(u32)
);
id!(
    /// One transport session with a downstream, never reused while the process runs.
    ConnectionId(u64)
);
id!(
    /// One physical miner across reconnections; interned by worker name.
    DeviceId(u32)
);
id!(
    /// One entry of the configured list of upstreams; a pool that mines on its own templates is upstream 0.
    UpstreamId(u16)
);
id!(
    /// One life of one upstream channel: a new epoch starts whenever the channel is opened anew. A share never
    /// crosses epochs.
    Epoch(u32)
);
id!(
    /// A job that we made, never repeated: not within a process, and not across restarts, because the first
    /// number of a process is taken from the wall clock. SV1 job ids are its hexadecimal form.
    JobNumber(u64)
);
id!(
    /// The chain tips that one source of work has shown, counted from 1.
    TipNumber(u64)
);

impl JobNumber {
    /// The job id that SV2 downstreams see.
    pub const fn job_id(self) -> JobId {
        JobId(self.0 as u32)
    }

    /// The first job number of a process that starts at `now`: milliseconds leave room for four million jobs
    /// each, so that a restart never repeats a number.
    pub fn first(now: crate::Now) -> Self {
        JobNumber(((now.utc.as_millis() as u64) << 16) | 1)
    }

    /// The number after this one.
    pub const fn next(self) -> Self {
        JobNumber(self.0 + 1)
    }
}
