//! Certificates: votes of distinct replicas for one thing.

use crate::types::{ClusterSize, ReplicaId, ReplicaSet};

/// At most one vote of each replica, for a value of type `T`. A correct replica never votes for two different values
/// under one heading (P14), so the first vote stands, unless [`Certificate::replace`] is meant.
#[derive(Clone, Debug)]
pub struct Certificate<T> {
    votes: Vec<(ReplicaId, T)>,
}

impl<T> Default for Certificate<T> {
    fn default() -> Self {
        Certificate { votes: Vec::new() }
    }
}

impl<T: PartialEq + Copy> Certificate<T> {
    /// Adds `from`'s vote. False if `from` has voted before; then the first vote stands.
    pub fn add(&mut self, from: ReplicaId, vote: T) -> bool {
        let new = self.vote_of(from).is_none();
        if new {
            self.votes.push((from, vote));
        }
        new
    }

    /// Sets `from`'s vote, whatever it was.
    pub fn replace(&mut self, from: ReplicaId, vote: T) {
        self.votes.retain(|(r, _)| *r != from);
        self.votes.push((from, vote));
    }

    /// Forgets `from`'s vote.
    pub fn remove(&mut self, from: ReplicaId) {
        self.votes.retain(|(r, _)| *r != from);
    }

    /// Forgets all votes, and keeps the room for others.
    pub fn clear(&mut self) {
        self.votes.clear();
    }

    /// What `from` voted for.
    pub fn vote_of(&self, from: ReplicaId) -> Option<T> {
        self.votes.iter().find(|(r, _)| *r == from).map(|(_, v)| *v)
    }

    /// Who voted for `value`.
    pub fn voters(&self, value: T) -> ReplicaSet {
        self.votes.iter().filter(|(_, v)| *v == value).map(|(r, _)| *r).collect()
    }

    /// How many voted for `value`.
    pub fn count(&self, value: T) -> usize {
        self.votes.iter().filter(|(_, v)| *v == value).count()
    }

    /// All votes.
    pub fn votes(&self) -> impl Iterator<Item = (ReplicaId, T)> {
        self.votes.iter().copied()
    }

    /// The value that at least `enough` replicas voted for. With `enough > n / 2` or with correct voters there is one.
    pub fn decided(&self, enough: usize) -> Option<T> {
        self.votes.iter().map(|(_, v)| *v).find(|&v| self.count(v) >= enough)
    }

    /// Whether no value can reach `enough` votes any more, however those not yet heard vote (P25).
    pub fn is_split(&self, size: ClusterSize, enough: usize) -> bool {
        let unheard = size.n() - self.votes.len();
        let most = self.votes.iter().map(|(_, v)| self.count(*v)).max().unwrap_or(0);
        most + unheard < enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p14_the_first_vote_of_a_replica_stands() {
        let mut certificate = Certificate::default();
        assert!(certificate.add(ReplicaId(1), 'a'));
        assert!(!certificate.add(ReplicaId(1), 'b'));
        assert!(certificate.add(ReplicaId(2), 'a'));
        assert_eq!((certificate.count('a'), certificate.count('b')), (2, 0));
        assert_eq!(certificate.decided(2), Some('a'));
        assert_eq!(certificate.decided(3), None);
    }

    #[test]
    fn p25_split_means_that_nobody_can_reach_a_quorum() {
        let size = ClusterSize::of(4).unwrap();
        let mut certificate = Certificate::default();
        certificate.add(ReplicaId(0), 'a');
        certificate.add(ReplicaId(1), 'b');
        assert!(!certificate.is_split(size, 3), "the two unheard can still side with one");
        certificate.add(ReplicaId(2), 'c');
        assert!(certificate.is_split(size, 3));
        let mut halves = Certificate::default();
        for (r, v) in [(0, 'a'), (1, 'a'), (2, 'b')] {
            halves.add(ReplicaId(r), v);
        }
        assert!(!halves.is_split(size, 3));
        halves.add(ReplicaId(3), 'b');
        assert!(halves.is_split(size, 3), "all are heard");
        let mut one_liar = Certificate::default();
        for (r, v) in [(0, 'a'), (1, 'a'), (2, 'a'), (3, 'x')] {
            one_liar.add(ReplicaId(r), v);
        }
        assert!(!one_liar.is_split(size, 3));
    }
}
