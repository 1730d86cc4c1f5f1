//! What a client endpoint can be told.

use std::time::Duration;

use crate::limits;

/// Configuration of an [`Endpoint`](super::Endpoint). Every value has a default; [`validate`](Self::validate) names
/// the first that is out of bounds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointConfig {
    /// The largest datagram that the path to the replicas takes, in bytes of UDP payload.
    pub datagram_max: usize,
    /// The cluster's `inline_max`: a larger pack goes to all replicas at once (P3).
    pub inline_max: usize,
    /// Whether the cluster's read-only optimisation is on. If it is off, queries are ordered, and w committed replies
    /// are a certificate (P5).
    pub read_only: bool,
    /// Whether a query that no quorum answers alike is sent again as an ordered request (P6). Off for identities that
    /// may only read: their queries are repeated until the deadline instead.
    pub fallback: bool,
    /// A request without an answer for this long is given up. [`Duration::MAX`]: never.
    pub request_timeout: Duration,
    /// The first session-open's counter. It must be above every counter that this identity used before: nanoseconds
    /// since the Unix epoch serve (P9).
    pub first_counter: u64,
    /// A session without a request for this long is not trusted to live: the next request opens another first. At
    /// most half of the cluster's idle expiry; shorter costs one session-open more, longer may cost a
    /// [`SessionLost`](super::RequestError::SessionLost).
    pub session_idle: Duration,
    /// Sessions that may exist at once.
    pub sessions_max: usize,
    /// Queries that may be outstanding at once.
    pub queries_max: usize,
    /// Bytes of uncertified results kept per replica. Above it only their digests are, and the result is asked for
    /// again: a lying replica fills only its own share.
    pub held_bytes_max: usize,
    /// Bytes handed to the transport per turn and receiver, at most, when a message is fragmented; the rest follows every
    /// `pace_interval`, as far as the replicas grant it (P54). Below the receivers' socket buffers. While large requests
    /// have to be sent again it is less.
    pub pace_bytes: usize,
    /// See `pace_bytes`.
    pub pace_interval: Duration,
    /// Completions name who vouched for them, and with what ([`Completion::members`](super::Completion::members)):
    /// for checkers.
    pub evidence: bool,
}

impl EndpointConfig {
    /// Idle expiry that a default cluster configuration has, halved.
    const SESSION_IDLE: Duration = Duration::from_secs(30 * 60);

    /// The first value that is out of bounds, as one sentence.
    ///
    /// # Errors
    /// That sentence.
    pub fn validate(&self) -> Result<(), String> {
        let within = |name: &str, value: usize, min: usize, max: usize| match (min..=max).contains(&value) {
            true => Ok(()),
            false => Err(format!("{name} is {value}; it must be from {min} to {max}")),
        };
        within("datagram_max", self.datagram_max, limits::DATAGRAM_MIN, limits::DATAGRAM_MAX)?;
        within("inline_max", self.inline_max, 256, limits::MESSAGE_MAX / 2)?;
        within("sessions_max", self.sessions_max, 1, 1 << 20)?;
        within("queries_max", self.queries_max, 1, 1 << 20)?;
        within("held_bytes_max", self.held_bytes_max, limits::OPERATION_MAX, usize::MAX)?;
        within("pace_bytes", self.pace_bytes, limits::DATAGRAM_MIN, usize::MAX)?;
        if self.request_timeout.is_zero() || self.pace_interval.is_zero() {
            return Err("request_timeout and pace_interval must be above zero".to_owned());
        }
        if self.first_counter == 0 {
            return Err("first_counter is 0; counters start at 1".to_owned());
        }
        Ok(())
    }
}

impl Default for EndpointConfig {
    fn default() -> EndpointConfig {
        EndpointConfig {
            datagram_max: 1_452,
            inline_max: 8 << 10,
            read_only: true,
            fallback: true,
            request_timeout: Duration::from_secs(30),
            first_counter: 1,
            session_idle: EndpointConfig::SESSION_IDLE,
            sessions_max: 4_096,
            queries_max: 4_096,
            held_bytes_max: 16 << 20,
            pace_bytes: 256 << 10,
            pace_interval: Duration::from_micros(500),
            evidence: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p44_configuration_is_bounded_with_one_sentence_each() {
        assert_eq!(EndpointConfig::default().validate(), Ok(()));
        let config = EndpointConfig { datagram_max: 100, ..Default::default() };
        assert_eq!(config.validate(), Err("datagram_max is 100; it must be from 1232 to 65507".to_owned()));
        assert!(EndpointConfig { first_counter: 0, ..Default::default() }.validate().is_err());
        assert!(EndpointConfig { request_timeout: Duration::ZERO, ..Default::default() }.validate().is_err());
    }
}
