//! Randomness of the operating system: keys, endpoint ids, seeds.
#![forbid(unsafe_code)]

use super::Error;

/// `N` random bytes.
///
/// # Errors
/// [`Error`], if the operating system has none.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::io("drawing random bytes")(std::io::Error::other(error.to_string())))?;
    Ok(bytes)
}
