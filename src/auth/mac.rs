//! AES-CMAC of 32-byte digests, truncated to 8 bytes.
//!
//! The input is always two whole blocks, so CMAC (RFC 4493) is two encryptions with a key schedule and one subkey
//! that are computed once: E(E(m0) ^ m1 ^ K1). The general construction, many times slower, is the oracle in tests.

#[cfg(target_arch = "x86_64")]
mod x86;

use aes::Aes128Enc;
use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};

use crate::types::Digest;

/// A truncated tag.
pub(super) type Tag = [u8; 8];

type Block = aes::Block;

/// A key for one pair and direction, ready for use.
#[derive(Clone)]
pub(super) enum MacKey {
    #[cfg(target_arch = "x86_64")]
    Native(x86::Key),
    Portable(Portable),
}

impl MacKey {
    pub(super) fn new(key: &[u8; 16]) -> MacKey {
        #[cfg(target_arch = "x86_64")]
        if let Some(aes) = x86::Aes::detect() {
            return MacKey::Native(x86::Key::new(aes, key));
        }
        MacKey::Portable(Portable::new(key))
    }

    pub(super) fn tag(&self, digest: &Digest) -> Tag {
        match self {
            #[cfg(target_arch = "x86_64")]
            MacKey::Native(key) => x86::Key::tags([key], digest)[0],
            MacKey::Portable(key) => key.tag(digest),
        }
    }

    /// Constant time: both tags are compared as one integer.
    #[must_use]
    pub(super) fn verify(&self, digest: &Digest, tag: &Tag) -> bool {
        u64::from_le_bytes(self.tag(digest)) ^ u64::from_le_bytes(*tag) == 0
    }
}

/// The tags of one digest under several keys, three at a time: what a cluster of four needs for a broadcast.
pub(super) fn vector<'a>(mut keys: impl Iterator<Item = &'a MacKey>, digest: &Digest, mut each: impl FnMut(Tag)) {
    while let Some(first) = keys.next() {
        let (second, third) = (keys.next(), keys.next());
        #[cfg(target_arch = "x86_64")]
        if let (MacKey::Native(a), Some(MacKey::Native(b)), Some(MacKey::Native(c))) = (first, second, third) {
            x86::Key::tags([a, b, c], digest).into_iter().for_each(&mut each);
            continue;
        }
        [Some(first), second, third].into_iter().flatten().for_each(|key| each(key.tag(digest)));
    }
}

/// K1 of CMAC from the encrypted zero block: doubled in GF(2^128), branch-free.
fn doubled(zero: [u8; 16]) -> [u8; 16] {
    let l = u128::from_be_bytes(zero);
    ((l << 1) ^ ((l >> 127) * 0x87)).to_be_bytes()
}

/// On any processor.
#[derive(Clone)]
pub(super) struct Portable {
    cipher: Aes128Enc,
    subkey: [u8; 16],
}

impl Drop for Portable {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.subkey);
    }
}

impl Portable {
    fn new(key: &[u8; 16]) -> Portable {
        let cipher = Aes128Enc::new(&Array::from(*key));
        let mut zero = Block::default();
        cipher.encrypt_block(&mut zero);
        Portable { cipher, subkey: doubled(zero.into()) }
    }

    fn tag(&self, digest: &Digest) -> Tag {
        let mut block = Block::default();
        block.copy_from_slice(&digest.0[..16]);
        self.cipher.encrypt_block(&mut block);
        for i in 0..16 {
            block[i] ^= digest.0[16 + i] ^ self.subkey[i];
        }
        self.cipher.encrypt_block(&mut block);
        let [a, b, c, d, e, f, g, h, ..] = block.0;
        [a, b, c, d, e, f, g, h]
    }
}

#[cfg(test)]
mod tests {
    use cmac::{Cmac, Mac};
    use proptest::prelude::*;

    use super::*;

    fn oracle(key: &[u8; 16], message: &[u8]) -> Tag {
        let mut mac = <Cmac<aes::Aes128> as cmac::KeyInit>::new_from_slice(key).unwrap();
        mac.update(message);
        mac.finalize().into_bytes()[..8].try_into().unwrap()
    }

    proptest! {
        #[test]
        fn two_block_form_equals_the_cmac_crate(keys: Vec<[u8; 16]>, digest: [u8; 32]) {
            let keys = &keys[..keys.len().min(crate::limits::REPLICAS_MAX)];
            let made: Vec<MacKey> = keys.iter().map(MacKey::new).collect();
            let expected: Vec<Tag> = keys.iter().map(|key| oracle(key, &digest)).collect();
            let mut tags = Vec::new();
            vector(made.iter(), &Digest(digest), |tag| tags.push(tag));
            prop_assert_eq!(&tags, &expected);
            for (key, tag) in made.iter().zip(&tags) {
                prop_assert!(key.verify(&Digest(digest), tag));
            }
            let portable: Vec<Tag> = keys.iter().map(|key| Portable::new(key).tag(&Digest(digest))).collect();
            prop_assert_eq!(&portable, &expected);
        }

        #[test]
        fn any_flipped_bit_fails(key: [u8; 16], digest: [u8; 32], bit in 0usize..64) {
            let key = MacKey::new(&key);
            let mut tag = key.tag(&Digest(digest));
            tag[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!key.verify(&Digest(digest), &tag));
        }
    }

    #[test]
    fn both_signs_of_the_subkey_are_met() {
        // K1 is reduced only if the top bit of E(0) is set: keys of both kinds.
        let tops: std::collections::BTreeSet<u8> = (0..16u8)
            .map(|k| {
                let mut zero = Block::default();
                Aes128Enc::new(&Array::from([k; 16])).encrypt_block(&mut zero);
                let (key, portable) = (MacKey::new(&[k; 16]), Portable::new(&[k; 16]));
                let tags = [key.tag(&Digest([k; 32])), portable.tag(&Digest([k; 32]))];
                assert_eq!(tags, [oracle(&[k; 16], &[k; 32]); 2]);
                zero[0] >> 7
            })
            .collect();
        assert_eq!(tops.len(), 2);
    }
}
