//! The system calls that no crate wraps safely: recvmmsg, sendmmsg and four socket options.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::types::ClientId;
use crate::wire::header;

/// Datagrams per system call.
pub(crate) const BATCH: usize = 32;

/// A socket address in the kernel's form. The kernel asks no alignment of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RawAddress {
    bytes: [u8; RawAddress::MAX],
    len: u8,
}

impl RawAddress {
    /// `sizeof(struct sockaddr_in6)`.
    pub(crate) const MAX: usize = mem::size_of::<libc::sockaddr_in6>();
    const V4: usize = mem::size_of::<libc::sockaddr_in>();

    pub(crate) const EMPTY: RawAddress = RawAddress { bytes: [0; Self::MAX], len: 0 };

    pub(crate) fn new(address: SocketAddr) -> RawAddress {
        let mut raw = RawAddress::EMPTY;
        let bytes = &mut raw.bytes;
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                raw.len = Self::V4 as u8;
            }
            SocketAddr::V6(v6) => {
                bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                bytes[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                raw.len = Self::MAX as u8;
            }
        }
        raw
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The address that the kernel wrote. None for families other than IP.
    pub(crate) fn parse(bytes: &[u8]) -> Option<SocketAddr> {
        let family = i32::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        match family {
            libc::AF_INET => {
                let ip: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
                Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(ip)), port))
            }
            libc::AF_INET6 => {
                let ip: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
                Some(SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(ip), port, word(4)?, word(24)?)))
            }
            _ => None,
        }
    }
}

/// Space for one `recvmmsg`.
pub(crate) struct Inbound {
    buffers: Vec<u8>,
    each: usize,
    names: [[u8; RawAddress::MAX]; BATCH],
    got: [(usize, bool); BATCH],
}

impl Inbound {
    /// For datagrams of up to `each` bytes.
    pub(crate) fn new(each: usize) -> Inbound {
        Inbound { buffers: vec![0; each * BATCH], each, names: [[0; RawAddress::MAX]; BATCH], got: [(0, false); BATCH] }
    }

    /// Receives up to [`BATCH`] datagrams without blocking; how many.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: all-zero is a valid value of these C structs (null pointers, zero lengths).
        let mut vectors: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        let each = self.buffers.chunks_exact_mut(self.each).zip(&mut self.names).zip(&mut vectors).zip(&mut headers);
        for (((buffer, name), vector), header) in each {
            *vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = name.as_mut_ptr().cast();
            header.msg_hdr.msg_namelen = RawAddress::MAX as u32;
        }
        // SAFETY: every header points to one vector, one name and through the vector to one buffer, with their true
        // lengths; all are disjoint, live past the call and are touched by nobody else during it.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        for (got, header) in self.got.iter_mut().zip(&headers[..received]) {
            *got = (header.msg_len as usize, header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0);
        }
        Ok(received)
    }

    /// Bytes and sender of the `i`-th; None if it was longer than it may be.
    pub(crate) fn get(&self, i: usize) -> Option<(&[u8], Option<SocketAddr>)> {
        let (len, truncated) = self.got[i];
        (!truncated).then(|| (&self.buffers[i * self.each..][..len], RawAddress::parse(&self.names[i])))
    }
}

/// One datagram of [`send_batch`].
pub(crate) struct Gather<'a> {
    pub(crate) to: RawAddress,
    pub(crate) head: &'a [u8],
    pub(crate) body: &'a [u8],
}

/// Sends up to [`BATCH`] datagrams without blocking; how many were taken, in order. An error is the first one's.
pub(crate) fn send_batch(socket: BorrowedFd<'_>, batch: &[Gather<'_>]) -> io::Result<usize> {
    // SAFETY: all-zero is a valid value of these C structs (null pointers, zero lengths).
    let mut vectors: [[libc::iovec; 2]; BATCH] = unsafe { mem::zeroed() };
    // SAFETY: as above.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
    assert!(batch.len() <= BATCH);
    for ((one, vectors), header) in batch.iter().zip(&mut vectors).zip(&mut headers) {
        vectors[0] = libc::iovec { iov_base: one.head.as_ptr().cast_mut().cast(), iov_len: one.head.len() };
        vectors[1] = libc::iovec { iov_base: one.body.as_ptr().cast_mut().cast(), iov_len: one.body.len() };
        let name = one.to.as_slice();
        header.msg_hdr.msg_iov = vectors.as_mut_ptr();
        header.msg_hdr.msg_iovlen = 2;
        header.msg_hdr.msg_name = name.as_ptr().cast_mut().cast();
        header.msg_hdr.msg_namelen = name.len() as u32;
    }
    // SAFETY: the first `batch.len()` headers point to vectors and names with their true lengths, which live past the
    // call; the kernel only reads what they point to and writes only `msg_len` of the headers.
    let sent =
        unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), batch.len() as u32, libc::MSG_DONTWAIT) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn option<T: Copy>(socket: BorrowedFd<'_>, level: i32, name: i32, zero: T) -> io::Result<(T, usize)> {
    let mut value = zero;
    let mut len = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is `len` writable bytes; callers instantiate T with integers and arrays of them only, for which
    // any bytes are valid.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, std::ptr::from_mut(&mut value).cast(), &raw mut len)
    };
    if done == 0 { Ok((value, len as usize)) } else { Err(io::Error::last_os_error()) }
}

/// Bytes that [`segment_size`] reads: `CMSG_SPACE(sizeof(int))`.
pub(crate) const SEGMENT_CONTROL: usize = mem::size_of::<libc::cmsghdr>() + 8;

/// Lets the kernel hand up datagrams of one sender together, with their size in a control message, or no longer.
pub(crate) fn coalesce(socket: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    let value = i32::from(on);
    let len = mem::size_of::<i32>() as libc::socklen_t;
    // SAFETY: `value` is `len` readable bytes.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_GRO, std::ptr::from_ref(&value).cast(), len)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Which socket of those that share an address takes a datagram, by what the client's id in its header begins with: socket
/// 1 + [`client_shard`] for what names a client as its sender, socket 0 for all else. They are counted in the order in which
/// they were bound. For as many client sockets as there are.
pub(crate) fn steer(socket: BorrowedFd<'_>, clients: usize) -> io::Result<()> {
    use libc::{BPF_A, BPF_ABS, BPF_ADD, BPF_ALU, BPF_B, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_MOD, BPF_RET, BPF_W};
    let step = |code: u32, jt: u8, jf: u8, k: usize| libc::sock_filter { code: code as u16, jt, jf, k: k as u32 };
    // A load beyond the datagram's end gives 0.
    let mut program = [
        step(BPF_LD | BPF_B | BPF_ABS, 0, 0, header::SENDER_AT),
        step(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, usize::from(header::CLIENT)),
        step(BPF_RET | BPF_K, 0, 0, 0),
        step(BPF_LD | BPF_W | BPF_ABS, 0, 0, header::CLIENT_AT),
        step(BPF_ALU | BPF_MOD | BPF_K, 0, 0, clients),
        step(BPF_ALU | BPF_ADD | BPF_K, 0, 0, 1),
        step(BPF_RET | BPF_A, 0, 0, 0),
    ];
    let value = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let len = mem::size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: `value` is `len` readable bytes, and names `program`, which lives until the kernel has copied it.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            std::ptr::from_ref(&value).cast(),
            len,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Which of `clients` client sockets takes what a client sends; [`steer`] has the kernel compute the same.
pub(crate) fn client_shard(client: ClientId, clients: usize) -> usize {
    let [a, b, c, d, ..] = client.0.to_le_bytes();
    u32::from_be_bytes([a, b, c, d]) as usize % clients
}

/// What a control message says about the size of the datagrams that were received together; none if it says nothing.
pub(crate) fn segment_size(control: &[u8]) -> Option<usize> {
    let int = |at: usize| Some(i32::from_ne_bytes(control.get(at..at + 4)?.try_into().ok()?));
    let level = mem::offset_of!(libc::cmsghdr, cmsg_level);
    let kind = mem::offset_of!(libc::cmsghdr, cmsg_type);
    let told = int(level)? == libc::SOL_UDP && int(kind)? == libc::UDP_GRO;
    let size = int(mem::size_of::<libc::cmsghdr>())?;
    usize::try_from(size).ok().filter(|&size| told && size > 0)
}

/// Datagrams that the kernel dropped at this socket since its making (`SO_MEMINFO`).
pub(crate) fn kernel_drops(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_MEMINFO: i32 = 55;
    const DROPS: usize = 8;
    let (info, _) = option(socket, libc::SOL_SOCKET, SO_MEMINFO, [0u32; 9])?;
    Ok(u64::from(info[DROPS]))
}

/// The MTU of the path from a connected socket, headers included.
pub(crate) fn path_mtu(socket: BorrowedFd<'_>, v6: bool) -> io::Result<usize> {
    let (level, name) = if v6 { (libc::IPPROTO_IPV6, libc::IPV6_MTU) } else { (libc::IPPROTO_IP, libc::IP_MTU) };
    let (mtu, _) = option(socket, level, name, 0i32)?;
    Ok(usize::try_from(mtu).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn raw_addresses_round_trip() {
        for text in ["127.0.0.1:7000", "[::1]:65535", "[fe80::1%3]:9"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(RawAddress::parse(RawAddress::new(address).as_slice()), Some(address));
        }
        assert_eq!(RawAddress::parse(&[]), None);
        assert_eq!(RawAddress::parse(&[1, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(RawAddress::parse(&RawAddress::new("127.0.0.1:1".parse().unwrap()).as_slice()[..7]), None);
    }

    #[test]
    fn batches_gather_and_scatter_every_byte() {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let to = RawAddress::new(b.local_addr().unwrap());
        let bodies: Vec<Vec<u8>> = (0..BATCH).map(|i| vec![i as u8; i * 40]).collect();
        let batch: Vec<Gather<'_>> = bodies.iter().map(|body| Gather { to, head: b"head", body }).collect();
        assert_eq!(send_batch(a.as_fd(), &batch).unwrap(), BATCH);
        let mut inbound = Inbound::new(1_000);
        let mut seen = 0;
        while seen < BATCH {
            for i in 0..inbound.receive(b.as_fd()).unwrap() {
                let whole = [b"head".as_slice(), &bodies[seen]].concat();
                match inbound.get(i) {
                    Some((bytes, from)) => {
                        assert_eq!((bytes, from), (whole.as_slice(), Some(a.local_addr().unwrap())));
                    }
                    None => assert!(whole.len() > 1_000),
                }
                seen += 1;
            }
        }
        assert_eq!(inbound.receive(b.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_came_together_is_asked_for_and_said() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(coalesce(udp.as_fd(), true).is_ok() && coalesce(udp.as_fd(), false).is_ok());
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(coalesce(tcp.as_fd(), true).is_err());

        let control = |level: i32, kind: i32, size: i32| {
            let len = (mem::size_of::<libc::cmsghdr>() + 4).to_ne_bytes();
            [&len[..], &level.to_ne_bytes(), &kind.to_ne_bytes(), &size.to_ne_bytes(), &[0; 4]].concat()
        };
        let said = control(libc::SOL_UDP, libc::UDP_GRO, 1_452);
        assert_eq!((said.len(), segment_size(&said)), (SEGMENT_CONTROL, Some(1_452)));
        assert_eq!(segment_size(&said[..16]), None);
        assert_eq!(segment_size(&[]), None);
        for (level, kind, size) in
            [(libc::SOL_SOCKET, libc::UDP_GRO, 9), (libc::SOL_UDP, 1, 9), (libc::SOL_UDP, libc::UDP_GRO, 0)]
        {
            assert_eq!(segment_size(&control(level, kind, size)), None);
        }
    }

    #[test]
    fn kernel_drops_and_path_mtu_are_read() {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        a.connect(b.local_addr().unwrap()).unwrap();
        assert!(path_mtu(a.as_fd(), false).unwrap() >= 1_500);
        assert_eq!(kernel_drops(b.as_fd()).unwrap(), 0);
        for _ in 0..2_000 {
            a.send(&[0; 1_000]).unwrap();
        }
        assert!(kernel_drops(b.as_fd()).unwrap() > 0);
    }
}
