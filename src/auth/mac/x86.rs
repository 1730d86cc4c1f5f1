//! The same with the processor's AES instructions, several keys at a time.
//!
//! One encryption waits for its own rounds: four cycles each, while the unit could begin one or two in every cycle. So the
//! tags of several keys take little longer than one, if their rounds are interleaved. The `aes` crate interleaves blocks of
//! one key only, and readies the round keys for the widest registers at each call, which takes longer than a block.
//!
//! This is all the `unsafe` outside the runtime: the calls of functions that need the instructions. [`Aes`] is the proof
//! that they are there.
#![deny(unsafe_code)]

use std::arch::x86_64::{
    __m128i, _mm_aesenc_si128, _mm_aesenclast_si128, _mm_aeskeygenassist_si128, _mm_cvtsi128_si64, _mm_set_epi64x,
    _mm_shuffle_epi32, _mm_slli_si128, _mm_unpackhi_epi64, _mm_xor_si128,
};

use zeroize::Zeroize;

use super::Tag;
use crate::types::Digest;

const ROUNDS: usize = 10;

/// The processor has the instructions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Aes(());

impl Aes {
    pub(super) fn detect() -> Option<Aes> {
        std::arch::is_x86_feature_detected!("aes").then_some(Aes(()))
    }
}

/// Round keys, and K1 of CMAC.
#[derive(Clone)]
pub(in crate::auth) struct Key {
    rounds: [__m128i; ROUNDS + 1],
    subkey: __m128i,
    _there: Aes,
}

impl Drop for Key {
    fn drop(&mut self) {
        self.rounds.zeroize();
        self.subkey.zeroize();
    }
}

impl Key {
    pub(super) fn new(aes: Aes, key: &[u8; 16]) -> Key {
        #[expect(unsafe_code, reason = "needs instructions")]
        // SAFETY: an `Aes` is made only where the processor has the AES instructions, which `expand` is compiled for.
        unsafe {
            expand(aes, key)
        }
    }

    /// The tag of `digest` under each key.
    pub(super) fn tags<const N: usize>(keys: [&Key; N], digest: &Digest) -> [Tag; N] {
        #[expect(unsafe_code, reason = "needs instructions")]
        // SAFETY: a `Key` holds an `Aes`, which is made only where the processor has the AES instructions, which `chain`
        // is compiled for.
        unsafe {
            chain(keys, digest)
        }
    }
}

#[target_feature(enable = "aes")]
fn load(bytes: &[u8; 16]) -> __m128i {
    let [low, high] = [0, 8].map(|at| i64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes")));
    _mm_set_epi64x(high, low)
}

#[target_feature(enable = "aes")]
fn store(block: __m128i) -> [u8; 16] {
    let (low, high) = (_mm_cvtsi128_si64(block), _mm_cvtsi128_si64(_mm_unpackhi_epi64(block, block)));
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&low.to_le_bytes());
    bytes[8..].copy_from_slice(&high.to_le_bytes());
    bytes
}

/// The round key after `key` (FIPS 197, 5.2).
#[target_feature(enable = "aes")]
fn next<const RCON: i32>(key: __m128i) -> __m128i {
    let word = _mm_shuffle_epi32::<0xff>(_mm_aeskeygenassist_si128::<RCON>(key));
    let mut sum = key;
    let mut shifted = key;
    for _ in 0..3 {
        shifted = _mm_slli_si128::<4>(shifted);
        sum = _mm_xor_si128(sum, shifted);
    }
    _mm_xor_si128(sum, word)
}

#[target_feature(enable = "aes")]
fn expand(aes: Aes, key: &[u8; 16]) -> Key {
    let k0 = load(key);
    let k1 = next::<0x01>(k0);
    let k2 = next::<0x02>(k1);
    let k3 = next::<0x04>(k2);
    let k4 = next::<0x08>(k3);
    let k5 = next::<0x10>(k4);
    let k6 = next::<0x20>(k5);
    let k7 = next::<0x40>(k6);
    let k8 = next::<0x80>(k7);
    let k9 = next::<0x1b>(k8);
    let k10 = next::<0x36>(k9);
    let rounds = [k0, k1, k2, k3, k4, k5, k6, k7, k8, k9, k10];
    let mut key = Key { rounds, subkey: load(&[0; 16]), _there: aes };
    let [zero] = encrypt([&key], [load(&[0; 16])]);
    key.subkey = load(&super::doubled(store(zero)));
    key
}

/// Each block under its key.
#[target_feature(enable = "aes")]
#[inline]
fn encrypt<const N: usize>(keys: [&Key; N], mut blocks: [__m128i; N]) -> [__m128i; N] {
    for (block, key) in blocks.iter_mut().zip(keys) {
        *block = _mm_xor_si128(*block, key.rounds[0]);
    }
    for round in 1..ROUNDS {
        for (block, key) in blocks.iter_mut().zip(keys) {
            *block = _mm_aesenc_si128(*block, key.rounds[round]);
        }
    }
    for (block, key) in blocks.iter_mut().zip(keys) {
        *block = _mm_aesenclast_si128(*block, key.rounds[ROUNDS]);
    }
    blocks
}

/// E(E(m0) ^ m1 ^ K1), its first half.
#[target_feature(enable = "aes")]
fn chain<const N: usize>(keys: [&Key; N], digest: &Digest) -> [Tag; N] {
    let half = |at: usize| load(digest.0[at..at + 16].try_into().expect("half a digest"));
    let (first, last) = (half(0), half(16));
    let mut blocks = encrypt(keys, [first; N]);
    for (block, key) in blocks.iter_mut().zip(keys) {
        *block = _mm_xor_si128(*block, _mm_xor_si128(last, key.subkey));
    }
    let blocks = encrypt(keys, blocks);
    let mut tags = [[0; 8]; N];
    for (tag, block) in tags.iter_mut().zip(blocks) {
        *tag = _mm_cvtsi128_si64(block).to_le_bytes();
    }
    tags
}
