//! AES-CMAC of 32-byte digests, truncated to 8 bytes.
//!
//! The input is always two whole blocks, so CMAC (RFC 4493) is two encryptions with a key schedule and one subkey
//! that are computed once: E(E(m0) ^ m1 ^ K1). The general construction, fifteen times slower, is the oracle in tests.

use aes::Aes128Enc;
use aes::cipher::consts::U16;
use aes::cipher::{
    Array, BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, InOut, KeyInit,
};

use crate::types::Digest;

/// A truncated tag.
pub(super) type Tag = [u8; 8];

type Block = aes::Block;

/// A key for one pair and direction, ready for use.
#[derive(Clone)]
pub(super) struct MacKey {
    cipher: Aes128Enc,
    subkey: [u8; 16],
}

impl Drop for MacKey {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.subkey);
    }
}

impl MacKey {
    pub(super) fn new(key: &[u8; 16]) -> MacKey {
        let cipher = Aes128Enc::new(&Array::from(*key));
        let mut zero = Block::default();
        cipher.encrypt_block(&mut zero);
        // K1: the encrypted zero block, doubled in GF(2^128); branch-free.
        let l = u128::from_be_bytes(zero.into());
        let subkey = ((l << 1) ^ ((l >> 127) * 0x87)).to_be_bytes();
        MacKey { cipher, subkey }
    }

    pub(super) fn tag(&self, digest: &Digest) -> Tag {
        let mut block = Block::default();
        block.copy_from_slice(&digest.0[..16]);
        let mut rest = [0; 16];
        for (i, byte) in rest.iter_mut().enumerate() {
            *byte = digest.0[16 + i] ^ self.subkey[i];
        }
        self.cipher.encrypt_with_backend(Chain { block: &mut block, rest });
        let [a, b, c, d, e, f, g, h, ..] = block.0;
        [a, b, c, d, e, f, g, h]
    }

    /// Constant time: both tags are compared as one integer.
    #[must_use]
    pub(super) fn verify(&self, digest: &Digest, tag: &Tag) -> bool {
        u64::from_le_bytes(self.tag(digest)) ^ u64::from_le_bytes(*tag) == 0
    }
}

/// Both encryptions in one: the cipher readies its round keys for the widest registers at each call, which takes longer
/// than to encrypt a block.
struct Chain<'a> {
    block: &'a mut Block,
    /// What the first is combined with: m1 ^ K1.
    rest: [u8; 16],
}

impl BlockSizeUser for Chain<'_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for Chain<'_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        backend.encrypt_block(InOut::from(&mut *self.block));
        self.block.iter_mut().zip(self.rest).for_each(|(byte, rest)| *byte ^= rest);
        backend.encrypt_block(InOut::from(self.block));
    }
}

/// The tags of one digest under several keys.
pub(super) fn vector<'a>(keys: impl Iterator<Item = &'a MacKey>, digest: &Digest, each: impl FnMut(Tag)) {
    keys.map(|key| key.tag(digest)).for_each(each);
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
                assert_eq!(MacKey::new(&[k; 16]).tag(&Digest([k; 32])), oracle(&[k; 16], &[k; 32]));
                zero[0] >> 7
            })
            .collect();
        assert_eq!(tops.len(), 2);
    }
}
