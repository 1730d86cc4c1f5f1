//! Every bound, with its reason (P44). Defaults of configurable values stand in `protocol::Config` and its siblings;
//! what stands here cannot be exceeded by any configuration or any message.

use std::time::Duration;

/// Replicas in a cluster: sets of replicas are one `u64`, and agreement is quadratic in it.
pub const REPLICAS_MAX: usize = 64;

/// Bytes of a UDP payload over IPv4 (65,535 - 8 - 20): no datagram is larger.
pub const DATAGRAM_MAX: usize = 65_507;

/// The smallest datagram size that may be configured: IPv6's minimum MTU less its headers and UDP's.
pub const DATAGRAM_MIN: usize = 1_232;

/// An operation or a result: 1 MiB, and room for its framing within [`MESSAGE_MAX`].
pub const OPERATION_MAX: usize = 1 << 20;

/// A message before fragmentation. A batch of several large inline packs must fit with their framing.
pub const MESSAGE_MAX: usize = 4 << 20;

/// Requests in one pack: a pack is authenticated, relayed and blamed as a whole.
pub const PACK_REQUESTS_MAX: usize = 1_024;

/// Packs in one batch.
pub const BATCH_PACKS_MAX: usize = 1_024;

/// Requests in one batch: positions keep 20 bits for the index.
pub const BATCH_REQUESTS_MAX: usize = 16_384;

/// Bytes of all packs in one batch, also of those that it names by digest: a batch can be asked for as a whole, and
/// must then fit a message with its framing.
pub const BATCH_BYTES_MAX: usize = MESSAGE_MAX - 256 * 1024;

/// Results of a batch, in bytes, that a primary aims at (P10). No bound: nobody knows them before.
pub const BATCH_RESULTS: usize = 4 << 20;

/// Frames in one envelope.
pub const FRAMES_MAX: usize = 4_096;

/// A frame's body above this enters its envelope's digest by a digest of its own, computed once for all receivers.
pub const FRAME_INLINE_MAX: usize = 256;

/// Fragments of one message: enough for [`MESSAGE_MAX`] at [`DATAGRAM_MIN`].
pub const FRAGMENTS_MAX: usize = 4_096;

/// A client's message of so many bytes leaves whole, unasked, and has no receipt unless something of it is missing (P54): an
/// operation of 64 KiB and what it is wrapped in.
pub const BULK_UNASKED: usize = 66 << 10;

/// Who waits until more of a large message may leave asks a replica for its word so long after the last one, with a piece
/// (P54). An unfinished message of which no piece came for longer may have been given up.
pub const BULK_ASKS: Duration = Duration::from_millis(640);

/// The log window L: STATUS carries two bits for each sequence number of it.
pub const LOG_WINDOW_MAX: u64 = 16_384;

/// Views that a message may name. A view is left every few milliseconds at most: it takes longer than the world has
/// lasted, and a view can always be followed by another.
pub const VIEW_MAX: u64 = u64::MAX / 2;

/// Sequence numbers that a message may name: what lies in a window above them still makes a position.
pub const SEQUENCE_MAX: u64 = (1 << 43) - 1;

/// Results up to this many bytes live in their session's slot and are always sent in full (P4, P7).
pub const SMALL_RESULT_MAX: usize = 128;

/// Requests a session may have in flight, W (P4).
pub const SESSION_WINDOW_MAX: u64 = 1_024;

/// A state page. BLAKE3 chunks are 1 KiB: a page is four of them, a subtree of its own.
pub const PAGE: usize = 4_096;

/// Nodes and pages that one FETCH-STATE may ask for: what answers is bounded by this many pages, 512 KiB.
pub const STATE_ITEMS_MAX: usize = 128;

/// Checkpoints that a STATE may name as those that can be fetched.
pub const STATE_HELD_MAX: usize = 32;

const _: () = assert!(STATE_ITEMS_MAX * (PAGE + 8) <= MESSAGE_MAX / 2, "the largest STATE is a message");
const _: () = assert!(OPERATION_MAX + 64 * 1024 <= MESSAGE_MAX, "one operation and its framing fit a message");
const _: () = assert!(FRAGMENTS_MAX * (DATAGRAM_MIN - 128) >= MESSAGE_MAX, "the largest message can be fragmented");
const _: () = assert!(OPERATION_MAX + 64 * 1024 <= BATCH_BYTES_MAX, "the largest pack fits a batch");
const _: () = assert!(BATCH_PACKS_MAX * 64 <= 256 * 1024, "the framing of a full batch fits beside its packs");
const _: () = assert!(BATCH_PACKS_MAX <= BATCH_REQUESTS_MAX);
const _: () = assert!(DATAGRAM_MIN < DATAGRAM_MAX);
const _: () = assert!(SEQUENCE_MAX + 2 * LOG_WINDOW_MAX < 1 << 44, "positions keep 44 bits for the sequence number");
