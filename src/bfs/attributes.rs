//! Handles and attributes as they travel (RFC 1813, sections 2.3, 2.5 and 2.6).

use super::inode::{Inode, InodeId, Kind, Stamp};
use super::xdr::{Garbage, Reader, Sink};
use crate::state::SnapshotId;

/// The longest handle of the protocol.
const HANDLE_MAX: usize = 64;

/// What handles of files begin with.
const MAGIC: [u8; 4] = *b"bfs1";

/// What handles that lead into the past begin with.
const MAGIC_PAST: [u8; 4] = *b"bfs2";

/// Bytes of a handle: magic, inode u32, generation u64; for the past: magic, inode u32, snapshot u64, both 0 for the
/// directory of snapshots.
const HANDLE: usize = 16;

/// The most that a snapshot's number may be: it stands in file numbers beside the inode's, under a bit that says so.
pub(super) const SNAPSHOT_MAX: u64 = (1 << 31) - 1;

/// The bit of a file's number that says that it is one of the past.
const PAST: u64 = 1 << 63;

/// A handle of a file: it outlives the gateway, and any replica.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Handle {
    /// A file as it is.
    Now {
        /// The inode.
        inode: InodeId,
        /// Which of the files that ever had this inode.
        generation: u64,
    },
    /// The directory of snapshots.
    Snapshots,
    /// A file as it was. In a snapshot, an inode is of one file for ever.
    Then {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The inode.
        inode: InodeId,
    },
}

impl Handle {
    /// The root directory's, which is always there.
    pub const ROOT: Handle = Handle::Now { inode: InodeId::ROOT, generation: 0 };

    /// cookieverf3 of the directory: its cookies are good as long as it is there.
    pub fn cookie_verifier(self) -> [u8; 8] {
        match self {
            Handle::Now { generation, .. } => generation,
            Handle::Snapshots | Handle::Then { .. } => PAST,
        }
        .to_be_bytes()
    }

    /// The number that programs know the file by: another for each file of now, and for each of each snapshot.
    pub fn fileid(self) -> u64 {
        match self {
            Handle::Now { inode, .. } => inode.0.into(),
            Handle::Snapshots => PAST,
            Handle::Then { snapshot, inode } => PAST | snapshot.0 << 32 | u64::from(inode.0),
        }
    }

    /// The handle of the past with this [`fileid`](Handle::fileid); `None` if it is one of now.
    pub fn of_past(fileid: u64) -> Option<Handle> {
        if fileid & PAST == 0 {
            return None;
        }
        let (snapshot, inode) = (SnapshotId((fileid & !PAST) >> 32), InodeId(fileid as u32));
        Some(if fileid == PAST { Handle::Snapshots } else { Handle::Then { snapshot, inode } })
    }

    /// As it travels, without its length.
    pub fn to_bytes(self) -> [u8; HANDLE] {
        let (magic, inode, number) = match self {
            Handle::Now { inode, generation } => (MAGIC, inode, generation),
            Handle::Snapshots => (MAGIC_PAST, InodeId::NONE, 0),
            Handle::Then { snapshot, inode } => (MAGIC_PAST, inode, snapshot.0),
        };
        let mut bytes = [0; HANDLE];
        bytes[..4].copy_from_slice(&magic);
        bytes[4..8].copy_from_slice(&inode.0.to_be_bytes());
        bytes[8..].copy_from_slice(&number.to_be_bytes());
        bytes
    }

    /// What [`to_bytes`](Handle::to_bytes) made; `None` for the handle of another server.
    pub fn from_bytes(bytes: &[u8]) -> Option<Handle> {
        let (magic, rest) = bytes.split_first_chunk()?;
        let (inode, rest) = rest.split_first_chunk()?;
        let (inode, number) = (InodeId(u32::from_be_bytes(*inode)), u64::from_be_bytes(rest.try_into().ok()?));
        match (*magic, inode, number) {
            (MAGIC, ..) => Some(Handle::Now { inode, generation: number }),
            (MAGIC_PAST, InodeId::NONE, 0) => Some(Handle::Snapshots),
            (MAGIC_PAST, _, 1..=SNAPSHOT_MAX) => Some(Handle::Then { snapshot: SnapshotId(number), inode }),
            _ => None,
        }
    }

    /// Writes an nfs_fh3.
    pub fn encode(self, sink: &mut impl Sink) {
        sink.put_opaque(&self.to_bytes());
    }

    /// Reads an nfs_fh3. `None`: it is one, and not of this file system.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Option<Handle>, Garbage> {
        reader.opaque(HANDLE_MAX).map(Handle::from_bytes)
    }
}

/// Writes an nfstime3. It has 32 bits for the seconds: what is later stays at their end.
pub(super) fn put_time(sink: &mut impl Sink, time: Stamp) {
    sink.put_u32(u32::try_from(time.seconds).unwrap_or(u32::MAX));
    sink.put_u32(time.nanos);
}

/// Reads an nfstime3, of any nanoseconds.
pub(super) fn get_time(reader: &mut Reader<'_>) -> Result<Stamp, Garbage> {
    Ok(Stamp { seconds: reader.u32()?.into(), nanos: reader.u32()? })
}

/// fattr3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// What it is.
    pub kind: Kind,
    /// The lower 12 bits of its mode.
    pub mode: u32,
    /// Names.
    pub links: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Bytes that it takes.
    pub used: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// The file system's number: always 0.
    pub fsid: u64,
    /// The file's number in it.
    pub fileid: u64,
    /// Last access.
    pub accessed: Stamp,
    /// Last change of the content.
    pub modified: Stamp,
    /// Last change of anything.
    pub changed: Stamp,
}

impl Attributes {
    /// Of the inode of a file that has this handle.
    pub fn of(handle: Handle, inode: &Inode) -> Attributes {
        Attributes {
            kind: inode.kind,
            mode: inode.mode,
            links: inode.links,
            uid: inode.uid,
            gid: inode.gid,
            size: inode.size(),
            used: inode.used(),
            device: inode.device,
            fsid: 0,
            fileid: handle.fileid(),
            accessed: inode.accessed,
            modified: inode.modified,
            changed: inode.changed,
        }
    }

    /// Writes it.
    pub fn encode(&self, sink: &mut impl Sink) {
        sink.put_u32(self.kind as u32);
        for word in [self.mode, self.links, self.uid, self.gid] {
            sink.put_u32(word);
        }
        sink.put_u64(self.size);
        sink.put_u64(self.used);
        sink.put_u32(self.device.0);
        sink.put_u32(self.device.1);
        sink.put_u64(self.fsid);
        sink.put_u64(self.fileid);
        for time in [self.accessed, self.modified, self.changed] {
            put_time(sink, time);
        }
    }

    /// Reads it.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Attributes, Garbage> {
        Ok(Attributes {
            kind: Kind::from_number(reader.u32()?).ok_or(Garbage)?,
            mode: reader.u32()?,
            links: reader.u32()?,
            uid: reader.u32()?,
            gid: reader.u32()?,
            size: reader.u64()?,
            used: reader.u64()?,
            device: (reader.u32()?, reader.u32()?),
            fsid: reader.u64()?,
            fileid: reader.u64()?,
            accessed: get_time(reader)?,
            modified: get_time(reader)?,
            changed: get_time(reader)?,
        })
    }
}

/// wcc_attr: what a client compares its cache with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Before {
    /// Bytes.
    pub size: u64,
    /// Last change of the content.
    pub modified: Stamp,
    /// Last change of anything.
    pub changed: Stamp,
}

impl Before {
    /// Of an inode that is a file's.
    pub fn of(inode: &Inode) -> Before {
        Before { size: inode.size(), modified: inode.modified, changed: inode.changed }
    }

    /// Writes it.
    pub fn encode(&self, sink: &mut impl Sink) {
        sink.put_u64(self.size);
        put_time(sink, self.modified);
        put_time(sink, self.changed);
    }

    /// Reads it.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Before, Garbage> {
        Ok(Before { size: reader.u64()?, modified: get_time(reader)?, changed: get_time(reader)? })
    }
}

/// How a time is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SetTime {
    /// Not at all.
    #[default]
    Keep,
    /// To the agreed time of the call.
    Now,
    /// To this.
    To(Stamp),
}

impl SetTime {
    fn encode(self, sink: &mut impl Sink) {
        match self {
            SetTime::Keep => sink.put_u32(0),
            SetTime::Now => sink.put_u32(1),
            SetTime::To(time) => {
                sink.put_u32(2);
                put_time(sink, time);
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<SetTime, Garbage> {
        match reader.u32()? {
            0 => Ok(SetTime::Keep),
            1 => Ok(SetTime::Now),
            2 => get_time(reader).map(SetTime::To),
            _ => Err(Garbage),
        }
    }
}

/// sattr3: attributes to be set; `None` leaves one as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NewAttributes {
    /// Permissions.
    pub mode: Option<u32>,
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// Last access.
    pub accessed: SetTime,
    /// Last change of the content.
    pub modified: SetTime,
}

impl NewAttributes {
    /// A mode alone.
    pub fn mode(mode: u32) -> NewAttributes {
        NewAttributes { mode: Some(mode), ..NewAttributes::default() }
    }

    /// Writes it.
    pub fn encode(&self, sink: &mut impl Sink) {
        for word in [self.mode, self.uid, self.gid] {
            sink.put_optional(word, Sink::put_u32);
        }
        sink.put_optional(self.size, Sink::put_u64);
        self.accessed.encode(sink);
        self.modified.encode(sink);
    }

    /// Reads it.
    pub fn decode(reader: &mut Reader<'_>) -> Result<NewAttributes, Garbage> {
        Ok(NewAttributes {
            mode: reader.optional(Reader::u32)?,
            uid: reader.optional(Reader::u32)?,
            gid: reader.optional(Reader::u32)?,
            size: reader.optional(Reader::u64)?,
            accessed: SetTime::decode(reader)?,
            modified: SetTime::decode(reader)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_of_others_are_told_apart() {
        let handle = Handle::Now { inode: InodeId(7), generation: 1 << 40 };
        let then = |snapshot| Handle::Then { snapshot: SnapshotId(snapshot), inode: InodeId(u32::MAX) };
        for handle in [handle, Handle::Snapshots, then(1), then(SNAPSHOT_MAX)] {
            assert_eq!(Handle::from_bytes(&handle.to_bytes()), Some(handle));
            let past = (handle != Handle::Now { inode: InodeId(7), generation: 1 << 40 }).then_some(handle);
            assert_eq!(Handle::of_past(handle.fileid()), past);
        }
        for snapshot in [0, SNAPSHOT_MAX + 1] {
            assert_eq!(Handle::from_bytes(&then(snapshot).to_bytes()), None);
        }
        let mut other = handle.to_bytes();
        other[0] ^= 1;
        assert_eq!(Handle::from_bytes(&other), None);
        assert_eq!(Handle::from_bytes(&handle.to_bytes()[..12]), None);
        assert_eq!(Handle::from_bytes(&[handle.to_bytes(), handle.to_bytes()].concat()), None);
        let mut long = Vec::new();
        long.put_opaque(&[0; 65]);
        assert_eq!(Handle::decode(&mut Reader::new(&long)), Err(Garbage));
    }

    #[test]
    fn attributes_survive_their_bytes() {
        let new = NewAttributes {
            mode: Some(0o644),
            size: Some(u64::MAX),
            accessed: SetTime::Now,
            modified: SetTime::To(Stamp { seconds: 5, nanos: 6 }),
            ..NewAttributes::default()
        };
        let mut bytes = Vec::new();
        new.encode(&mut bytes);
        assert_eq!(NewAttributes::decode(&mut Reader::new(&bytes)), Ok(new));
        let inode = Inode { kind: Kind::Fifo, links: 1, uid: 5, ..Inode::default() };
        let attributes = Attributes::of(Handle::Now { inode: InodeId(3), generation: 0 }, &inode);
        let mut bytes = Vec::new();
        attributes.encode(&mut bytes);
        assert_eq!(bytes.len(), 84);
        assert_eq!(Attributes::decode(&mut Reader::new(&bytes)), Ok(attributes));
    }
}
