//! What an operation may know besides the state.

use std::any::{Any, TypeId};
use std::collections::BTreeMap;

use crate::types::{ClientId, Position, SessionId, Time};

/// Separates the randomness of services from every other use of BLAKE3.
const RANDOM_CONTEXT: &str = "castra 2026 service randomness v1";

/// The agreed circumstances of one operation: the same on every correct replica.
pub struct Context<'a> {
    time: Time,
    seed: u64,
    client: ClientId,
    session: SessionId,
    position: Position,
    random: Option<blake3::OutputReader>,
    caches: &'a mut Caches,
}

impl<'a> Context<'a> {
    pub(crate) fn new(
        time: Time,
        seed: u64,
        client: ClientId,
        session: SessionId,
        position: Position,
        caches: &'a mut Caches,
    ) -> Context<'a> {
        Context { time, seed, client, session, position, random: None, caches }
    }

    /// A context for a service's own tests.
    pub fn for_test(time: Time, client: ClientId, position: Position, caches: &'a mut Caches) -> Context<'a> {
        Context::new(time, 0, client, SessionId::NONE, position, caches)
    }

    /// The agreed time (P19): chosen by the primary, strictly growing from one non-empty batch to the next, the same
    /// for all operations of a batch. In a query: the time of the last batch that the state includes.
    pub fn time(&self) -> Time {
        self.time
    }

    /// Who asks.
    pub fn client(&self) -> ClientId {
        self.client
    }

    /// The session of an ordered operation; [`SessionId::NONE`] in a query.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The place of the operation in the total order. In a query: the last batch that the state includes, index 0.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Fills `into` with bytes drawn from the agreed seed and the position. The primary chooses the seed, so they are
    /// neither secret nor beyond its influence: good for spreading, not for keys or lotteries.
    pub fn random(&mut self, into: &mut [u8]) {
        let (seed, position) = (self.seed, self.position);
        let reader = self.random.get_or_insert_with(|| {
            blake3::Hasher::new_derive_key(RANDOM_CONTEXT)
                .update(&seed.to_le_bytes())
                .update(&position.0.to_le_bytes())
                .finalize_xof()
        });
        reader.fill(into);
    }

    /// The next eight bytes of [`Context::random`].
    pub fn random_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.random(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// The service's own cache of type `T`, made by `T::default()` when it is not there. It may vanish between any two
    /// operations (rollback, transfer, whim of the simulator): keep only what can be rebuilt from the state.
    pub fn cache<T: Any + Default + Send>(&mut self) -> &mut T {
        self.caches.get_or_default()
    }

    /// The cache of type `T`, if it is there: for queries, which must not change it.
    pub fn cached<T: Any>(&self) -> Option<&T> {
        self.caches.get()
    }
}

/// Rebuildable caches of a service, one for each type.
#[derive(Default)]
pub struct Caches {
    by_type: BTreeMap<TypeId, Box<dyn Any + Send>>,
}

impl Caches {
    /// No caches.
    pub fn new() -> Caches {
        Caches::default()
    }

    /// Drops all of them.
    pub fn clear(&mut self) {
        self.by_type.clear();
    }

    fn get_or_default<T: Any + Default + Send>(&mut self) -> &mut T {
        let cache = self.by_type.entry(TypeId::of::<T>()).or_insert_with(|| Box::new(T::default()));
        cache.downcast_mut().expect("the entry of a type holds that type")
    }

    fn get<T: Any>(&self) -> Option<&T> {
        self.by_type.get(&TypeId::of::<T>())?.downcast_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SeqNum;

    fn draw(seed: u64, index: usize) -> [u64; 2] {
        let mut caches = Caches::new();
        let position = Position::new(SeqNum(3), index);
        let mut cx = Context::new(Time(1), seed, ClientId(1), SessionId(1), position, &mut caches);
        [cx.random_u64(), cx.random_u64()]
    }

    #[test]
    fn p11_randomness_follows_from_seed_and_position() {
        assert_eq!(draw(7, 0), draw(7, 0));
        assert_ne!(draw(7, 0), draw(8, 0));
        assert_ne!(draw(7, 0), draw(7, 1));
        assert_ne!(draw(7, 0)[0], draw(7, 0)[1]);
    }

    #[test]
    fn caches_are_kept_by_type_until_dropped() {
        let mut caches = Caches::new();
        let mut cx = Context::for_test(Time(0), ClientId(0), Position(0), &mut caches);
        assert_eq!(cx.cached::<u32>(), None);
        *cx.cache::<u32>() = 5;
        cx.cache::<String>().push('x');
        assert_eq!((*cx.cache::<u32>(), cx.cached::<String>().map(String::as_str)), (5, Some("x")));
        caches.clear();
        let cx = Context::for_test(Time(0), ClientId(0), Position(0), &mut caches);
        assert_eq!(cx.cached::<u32>(), None);
    }
}
