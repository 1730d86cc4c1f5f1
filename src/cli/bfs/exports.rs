//! Who may connect to a gateway.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network: the addresses whose first `prefix` bits are those of `address`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Net {
    /// Its bits beyond the prefix are 0.
    address: IpAddr,
    prefix: u8,
}

/// This machine.
pub const LOOPBACK: [Net; 2] = [
    Net { address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), prefix: 8 },
    Net { address: IpAddr::V6(Ipv6Addr::LOCALHOST), prefix: 128 },
];

/// The bits of an address, from the top, and how many there are.
fn bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    }
}

fn mask(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

impl Net {
    /// Whether the address is in it. One of IPv4 that came as one of IPv6 is one of IPv4.
    pub fn contains(self, address: IpAddr) -> bool {
        let ((own, width), (other, of)) = (bits(self.address), bits(address.to_canonical()));
        width == of && (own ^ other) & mask(self.prefix) == 0
    }
}

impl FromStr for Net {
    type Err = String;

    /// `10.1.0.0/16`, `fd00::/8`, or one address.
    fn from_str(text: &str) -> Result<Net, String> {
        let wrong = || "an address, or a network as in 10.1.0.0/16 or fd00::/8".to_owned();
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let (own, width) = bits(address);
        let prefix = match prefix {
            None => width,
            Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                digits.parse().map_err(|_| wrong())?
            }
            Some(_) => return Err(wrong()),
        };
        if prefix > width {
            return Err(format!("a prefix of {prefix} bits, where addresses have {width}"));
        }
        if own & !mask(prefix) != 0 {
            return Err(format!("{address} has bits beyond its first {prefix}"));
        }
        if address != address.to_canonical() {
            return Err("an address of IPv4, written as one".to_owned());
        }
        Ok(Net { address, prefix })
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match bits(self.address).1 == self.prefix {
            true => write!(f, "{}", self.address),
            false => write!(f, "{}/{}", self.address, self.prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Net {
        text.parse().unwrap()
    }

    #[test]
    fn networks_contain_what_begins_like_them() {
        let cases = [
            ("10.1.0.0/16", "10.1.255.3", "10.2.0.0"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.2"),
            ("192.168.4.0/22", "192.168.7.255", "192.168.8.0"),
            ("128.0.0.0/1", "255.255.255.255", "127.255.255.255"),
            ("0.0.0.0/0", "8.8.8.8", "::1"),
            ("::/0", "fe80::1", "8.8.8.8"),
            ("fd00::/8", "fdff::7", "fc00::7"),
            ("2001:db8::/33", "2001:db8:7fff::", "2001:db8:8000::"),
            ("::1", "::1", "::2"),
            ("10.0.0.0/8", "::ffff:10.9.8.7", "::10.9.8.7"),
        ];
        for (text, within, without) in cases {
            assert!(net(text).contains(within.parse().unwrap()), "{within} is in {text}");
            assert!(!net(text).contains(without.parse().unwrap()), "{without} is not in {text}");
            assert_eq!(net(text).to_string(), text);
        }
        assert!(LOOPBACK.iter().any(|net| net.contains("::ffff:127.0.0.1".parse().unwrap())));
        assert_eq!(LOOPBACK.map(|net| net.to_string()), ["127.0.0.0/8", "::1"]);
        assert_eq!(net("10.1.2.3/32"), net("10.1.2.3"));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        let wrong =
            ["", "/", "10.1/16", "10.1.0.0/", "10.1.0.0/33", "10.1.0.0/+8", "10.1.0.0/256", "::/129", "10.1.0.1/16"];
        for text in
            wrong.into_iter().chain(["fd00::1/64", "host", "10.1.0.0/16/1", "::ffff:10.0.0.0/104", "::ffff:1.2.3.4"])
        {
            assert!(text.parse::<Net>().is_err(), "{text:?}");
        }
    }
}
