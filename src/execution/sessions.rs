//! Sessions and their reply slots: what makes execution exactly once (P4, P9).
//!
//! ```text
//! session   0 next free u32 | 4 window u32 | 8 id | 16 client | 24 counter | 32 low | 40 last used (agreed time)
//!           48 endpoint | 56 large results kept u32
//!           64 the one reply slot (window 1), or u32 numbers of the pages of its slots
//! slot      0 t | 8 position | 16 place u32 (0 empty, 1 here, 2 in the reply store) | 20 length u32
//!           24 the result, or its place in the store
//! client    0 next free u32 | 4 sessions u32 | 8 client | 16 last counter | 24 last open (agreed time)
//! ```
//! Request t has slot t mod W. Two requests of one slot are W apart, and the window is W wide, so a slot is overwritten
//! only when the client has said by `low` that it received what lies there.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::config::ExecutorConfig;
use super::layout::{self, Records, SLOT, SLOTS_PER_PAGE, get_u32, get_u64, put_u64};
use super::reply_buffer::ReplyBuffer;
use super::reply_store::{Place, ReplyStore};
use crate::limits::SMALL_RESULT_MAX;
use crate::state::{PageId, Region};
use crate::types::{ClientId, EndpointId, Position, SessionId, Time};
use crate::wire::{Outcome, Refusal};

const WINDOW: usize = 4;
const ID: usize = 8;
const CLIENT: usize = 16;
const COUNTER: usize = 24;
const LOW: usize = 32;
const USED: usize = 40;
const ENDPOINT: usize = 48;
const KEPT: usize = 56;
const SLOTS: usize = 64;

const SLOT_PLACE: usize = 16;
const SLOT_LEN: usize = 20;
const SLOT_RESULT: usize = 24;
const EMPTY: u32 = 0;
const HERE: u32 = 1;
const STORED: u32 = 2;

const CLIENT_SESSIONS: usize = 4;
const CLIENT_ID: usize = 8;
const CLIENT_COUNTER: usize = 16;
const CLIENT_OPENED: usize = 24;

const _: () = assert!(SLOTS + SLOT <= layout::SESSION);
const _: () = assert!(
    SLOTS + 4 * (crate::limits::SESSION_WINDOW_MAX.div_ceil(SLOTS_PER_PAGE) as usize) <= layout::SESSION,
    "the pages of the largest window fit the record"
);

/// The session table. Everything lies in the region; the maps only find it, and can be rebuilt from it.
#[derive(Debug)]
pub(super) struct Sessions {
    config: ExecutorConfig,
    records: Records,
    clients: Records,
    store: ReplyStore,
    by_id: BTreeMap<SessionId, u32>,
    by_owner: BTreeMap<(ClientId, SessionId), u32>,
    client_records: BTreeMap<ClientId, u32>,
    /// The maps changed since [`begin`](Sessions::begin).
    changed: bool,
}

/// Whose a session is: a client identity, and the one endpoint of it that opened the session and may use it (P4).
pub(super) type Owner = (ClientId, EndpointId);

/// A session, found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Session {
    record: u32,
    page: PageId,
    at: usize,
    id: SessionId,
    owner: Owner,
    counter: u64,
    low: u64,
    window: u64,
    /// Large results that are kept for it.
    kept: u32,
    /// When it was last used, if [`settle`](Sessions::settle) has yet to write that, `low` and `kept`.
    used: Option<Time>,
}

/// What a session knows of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// It may execute now.
    Executable,
    /// It was executed at this position.
    Executed(Position),
    /// Its reply was received, it is beyond the window, or it is not the session's owner that asks: no answer.
    Ignored,
}

impl Session {
    /// Its name.
    pub(super) fn id(&self) -> SessionId {
        self.id
    }

    /// P4: t is executable if l <= t < l + W, where l = max(stored low, the request's own).
    pub(super) fn standing(&self, region: &Region, owner: Owner, t: u64, low: u64) -> Standing {
        let l = self.low.max(low);
        if self.owner != owner || t < l || t - l >= self.window {
            return Standing::Ignored;
        }
        let (page, at) = self.slot(region, t);
        let slot = &region.read(page)[at..at + SLOT];
        if get_u32(slot, SLOT_PLACE) == EMPTY {
            return Standing::Executable;
        }
        match get_u64(slot, 0) {
            held if held == t => Standing::Executed(Position(get_u64(slot, 8))),
            held => {
                assert!(held < t, "a slot is reused upwards");
                Standing::Executable
            }
        }
    }

    fn slot(&self, region: &Region, t: u64) -> (PageId, usize) {
        if self.window == 1 {
            return (self.page, self.at + SLOTS);
        }
        let slot = t % self.window;
        let entry = self.at + SLOTS + 4 * (slot / SLOTS_PER_PAGE) as usize;
        let page = PageId(get_u32(region.read(self.page), entry));
        (page, (slot % SLOTS_PER_PAGE) as usize * SLOT)
    }
}

impl Sessions {
    /// The table that lies in `region`.
    pub(super) fn load(region: &Region, config: &ExecutorConfig) -> Sessions {
        let mut sessions = Sessions {
            config: config.clone(),
            records: Records::sessions(config),
            clients: Records::clients(config),
            store: ReplyStore::new(config),
            by_id: BTreeMap::new(),
            by_owner: BTreeMap::new(),
            client_records: BTreeMap::new(),
            changed: false,
        };
        sessions.rebuild(region);
        sessions
    }

    fn rebuild(&mut self, region: &Region) {
        self.by_id.clear();
        self.by_owner.clear();
        self.client_records.clear();
        for record in 0..self.records.used(region) {
            let bytes = self.records.read(region, record);
            let (id, client) = (SessionId(get_u64(bytes, ID)), ClientId(get_u64(bytes, CLIENT)));
            if id != SessionId::NONE {
                self.by_id.insert(id, record);
                self.by_owner.insert((client, id), record);
            }
        }
        for record in 0..self.clients.used(region) {
            let bytes = self.clients.read(region, record);
            if get_u64(bytes, CLIENT_COUNTER) != 0 {
                self.client_records.insert(ClientId(get_u64(bytes, CLIENT_ID)), record);
            }
        }
    }

    /// A tentative batch begins.
    pub(super) fn begin(&mut self) {
        self.changed = false;
    }

    /// The region was rolled back to where it was at [`begin`](Sessions::begin).
    pub(super) fn rolled_back(&mut self, region: &Region) {
        if self.changed {
            self.rebuild(region);
        }
    }

    /// Live sessions.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn find(&self, region: &Region, id: SessionId) -> Option<Session> {
        let record = *self.by_id.get(&id)?;
        let session = self.session(region, record);
        assert_eq!(session.id, id, "the index agrees with the region");
        Some(session)
    }

    fn session(&self, region: &Region, record: u32) -> Session {
        let (page, at) = self.records.place(region, record);
        let bytes = &region.read(page)[at..at + layout::SESSION];
        Session {
            record,
            page,
            at,
            id: SessionId(get_u64(bytes, ID)),
            owner: (ClientId(get_u64(bytes, CLIENT)), EndpointId(get_u64(bytes, ENDPOINT))),
            counter: get_u64(bytes, COUNTER),
            low: get_u64(bytes, LOW),
            window: get_u32(bytes, WINDOW).into(),
            kept: get_u32(bytes, KEPT),
            used: None,
        }
    }

    /// Keeps the result of an executed request for its duplicates. What changes of the session itself is in `session`
    /// alone until it is [settled](Sessions::settle), once for all requests that follow each other.
    pub(super) fn keep(
        &self,
        region: &mut Region,
        session: &mut Session,
        (t, low): (u64, u64),
        position: Position,
        time: Time,
        result: &[u8],
    ) {
        let received = session.low.max(low);
        session.kept -= self.forget(region, session, Some(received));
        let stored;
        let (place, inline) = if result.len() <= SMALL_RESULT_MAX {
            (HERE, result)
        } else {
            session.kept += 1;
            stored = self.store.keep(region, result).to_bytes();
            (STORED, &stored[..])
        };
        let (page, at) = session.slot(region, t);
        let mut head = [0; SLOT_RESULT];
        head[..8].copy_from_slice(&t.to_le_bytes());
        head[8..16].copy_from_slice(&position.0.to_le_bytes());
        head[SLOT_PLACE..SLOT_PLACE + 4].copy_from_slice(&place.to_le_bytes());
        head[SLOT_LEN..SLOT_LEN + 4].copy_from_slice(&(result.len() as u32).to_le_bytes());
        let slot = region.write(page, at..at + SLOT_RESULT + inline.len());
        slot[..SLOT_RESULT].copy_from_slice(&head);
        slot[SLOT_RESULT..].copy_from_slice(inline);
        (session.low, session.used) = (received, Some(time));
    }

    /// Writes what [`keep`](Sessions::keep) changed of the session.
    pub(super) fn settle(&self, region: &mut Region, session: &Session) {
        let Some(used) = session.used else { return };
        let record = region.write(session.page, session.at + LOW..session.at + USED + 8);
        record[..8].copy_from_slice(&session.low.to_le_bytes());
        record[8..].copy_from_slice(&used.0.to_le_bytes());
        if get_u32(region.read(session.page), session.at + KEPT) != session.kept {
            layout::put_u32(region, session.page, session.at + KEPT, session.kept);
        }
    }

    /// The large results of requests below `end`, or of all, are not asked for again. How many they were.
    fn forget(&self, region: &mut Region, session: &Session, end: Option<u64>) -> u32 {
        let mut forgotten = 0;
        // Nothing was executed beyond the window, which may reach the last number that there is.
        let window = (0..session.window).map_while(|i| session.low.checked_add(i));
        for t in window.take_while(|t| end.is_none_or(|end| *t < end)) {
            // Most sessions never have any, and their slots need not be looked at.
            if forgotten == session.kept {
                break;
            }
            let (page, at) = session.slot(region, t);
            let slot = &region.read(page)[at..at + SLOT];
            if get_u32(slot, SLOT_PLACE) == STORED && get_u64(slot, 0) == t {
                let (place, len) = (Place::from_bytes(&slot[SLOT_RESULT..]), get_u32(slot, SLOT_LEN) as usize);
                self.store.release(region, place, len);
                forgotten += 1;
            }
        }
        forgotten
    }

    /// The outcome of a request that was executed: its result, or [`Outcome::Gone`].
    pub(super) fn kept(&self, region: &Region, session: &Session, t: u64, into: &mut ReplyBuffer) -> Outcome {
        let (page, at) = session.slot(region, t);
        let slot = &region.read(page)[at..at + SLOT];
        assert_eq!(get_u64(slot, 0), t, "the caller found it executed");
        let len = get_u32(slot, SLOT_LEN) as usize;
        into.clear();
        match get_u32(slot, SLOT_PLACE) {
            HERE => into.push(&slot[SLOT_RESULT..SLOT_RESULT + len]),
            place => {
                assert_eq!(place, STORED, "a slot that is in use");
                if !self.store.read(region, Place::from_bytes(&slot[SLOT_RESULT..]), len, into) {
                    return Outcome::Gone;
                }
            }
        }
        Outcome::Done(into.take())
    }

    /// Opens a session at `position` (P9): the outcome, and the position that it was agreed at.
    pub(super) fn open(
        &mut self,
        region: &mut Region,
        owner: Owner,
        (counter, window): (u64, u64),
        position: Position,
        time: Time,
    ) -> (Outcome, Position) {
        if let Some(live) = self.opened(region, owner, counter) {
            return live;
        }
        let outcome = match self.try_open(region, owner, (counter, window), position, time) {
            Ok(()) => opened(SessionId(position.0), window),
            Err(refusal) => Outcome::Refused(refusal),
        };
        (outcome, position)
    }

    /// The answer to an open whose counter is that of a live session of `owner`. Another endpoint of the same identity is
    /// not answered with it: the two would get each other's results.
    pub(super) fn opened(&self, region: &Region, owner: Owner, counter: u64) -> Option<(Outcome, Position)> {
        self.of_client(region, owner.0)
            .find(|session| session.counter == counter && session.owner == owner)
            .map(|session| (opened(session.id, session.window), Position(session.id.0)))
    }

    fn of_client(&self, region: &Region, client: ClientId) -> impl Iterator<Item = Session> {
        let all = (client, SessionId::NONE)..=(client, SessionId(u64::MAX));
        self.by_owner.range(all).map(move |(_, &record)| self.session(region, record))
    }

    fn try_open(
        &mut self,
        region: &mut Region,
        (client, endpoint): Owner,
        (counter, window): (u64, u64),
        position: Position,
        time: Time,
    ) -> Result<(), Refusal> {
        if window == 0 || window > self.config.window_max {
            return Err(Refusal::Window { window_max: self.config.window_max });
        }
        let known = self.client_records.get(&client).copied();
        let last = known.map_or(0, |record| get_u64(self.clients.read(region, record), CLIENT_COUNTER));
        if counter <= last {
            return Err(Refusal::Counter { last });
        }
        let live = known.map_or(0, |record| get_u32(self.clients.read(region, record), CLIENT_SESSIONS));
        let full = Refusal::Full { sessions_max: self.config.sessions_max.into() };
        if live >= self.config.sessions_per_client {
            let mine = self.of_client(region, client).map(|session| session.record);
            let quota = Refusal::Quota { sessions_max: self.config.sessions_per_client.into() };
            let evicted = self.longest_expired(region, mine, time).ok_or(quota)?;
            let evicted = self.session(region, evicted);
            self.close(region, &evicted);
        } else if self.by_id.len() >= self.config.sessions_max as usize {
            // An expired session of one's own, else of anyone: dead clients must not keep the table full.
            let mine = self.of_client(region, client).map(|session| session.record);
            let anyone = self.by_id.values().copied();
            let evicted = self.longest_expired(region, mine, time).or(self.longest_expired(region, anyone, time));
            let evicted = self.session(region, evicted.ok_or(full)?);
            self.close(region, &evicted);
        }
        let remembered = match known {
            Some(record) => record,
            None => self.remember(region, client).ok_or(full)?,
        };

        let record = self.records.allocate(region).expect("fewer sessions than sessions_max");
        let (page, at) = self.records.place(region, record);
        let mut bytes = [0; layout::SESSION];
        bytes[WINDOW..WINDOW + 4].copy_from_slice(&(window as u32).to_le_bytes());
        let fields = [(ID, position.0), (CLIENT, client.0), (ENDPOINT, endpoint.0), (COUNTER, counter), (USED, time.0)];
        for (field, value) in fields {
            bytes[field..field + 8].copy_from_slice(&value.to_le_bytes());
        }
        for i in 0..slot_pages(window) {
            let slots = region.allocate_zeroed().expect("the configuration bounds the region");
            bytes[SLOTS + 4 * i..SLOTS + 4 * i + 4].copy_from_slice(&slots.0.to_le_bytes());
        }
        region.write(page, at..at + layout::SESSION).copy_from_slice(&bytes);

        let (page, at) = self.clients.place(region, remembered);
        let live = get_u32(self.clients.read(region, remembered), CLIENT_SESSIONS);
        layout::put_u32(region, page, at + CLIENT_SESSIONS, live + 1);
        put_u64(region, page, at + CLIENT_COUNTER, counter);
        put_u64(region, page, at + CLIENT_OPENED, time.0);

        let id = SessionId(position.0);
        self.by_id.insert(id, record);
        self.by_owner.insert((client, id), record);
        self.changed = true;
        Ok(())
    }

    /// A record for a client that has none; `None` if every known client has sessions.
    fn remember(&mut self, region: &mut Region, client: ClientId) -> Option<u32> {
        let record = match self.clients.allocate(region) {
            Some(record) => record,
            None => {
                let idle = self.client_records.iter().map(|(&id, &record)| {
                    let bytes = self.clients.read(region, record);
                    (get_u32(bytes, CLIENT_SESSIONS), get_u64(bytes, CLIENT_OPENED), id, record)
                });
                let (_, _, forgotten, record) = idle.filter(|(live, ..)| *live == 0).min()?;
                self.client_records.remove(&forgotten);
                record
            }
        };
        let (page, at) = self.clients.place(region, record);
        let bytes = region.write(page, at..at + layout::CLIENT);
        bytes.fill(0);
        bytes[CLIENT_ID..CLIENT_ID + 8].copy_from_slice(&client.0.to_le_bytes());
        self.client_records.insert(client, record);
        self.changed = true;
        Some(record)
    }

    /// Of those used last at the same time, the one opened first.
    fn longest_expired(&self, region: &Region, records: impl Iterator<Item = u32>, time: Time) -> Option<u32> {
        let idle = records.map(|record| {
            let bytes = self.records.read(region, record);
            (get_u64(bytes, USED), get_u64(bytes, ID), record)
        });
        let (used, _, record) = idle.min()?;
        (time.since(Time(used)) >= self.config.session_idle).then_some(record)
    }

    /// Ends a session; its slots are free.
    pub(super) fn close(&mut self, region: &mut Region, session: &Session) {
        let forgotten = self.forget(region, session, None);
        debug_assert_eq!(forgotten, session.kept, "what is kept lies in the window");
        for i in 0..slot_pages(session.window) {
            let page = PageId(get_u32(region.read(session.page), session.at + SLOTS + 4 * i));
            region.release(page);
        }
        self.records.release(region, session.record);
        let client = *self.client_records.get(&session.owner.0).expect("a client with a session is known");
        let (page, at) = self.clients.place(region, client);
        let live = get_u32(region.read(page), at + CLIENT_SESSIONS);
        layout::put_u32(region, page, at + CLIENT_SESSIONS, live - 1);
        self.by_id.remove(&session.id);
        self.by_owner.remove(&(session.owner.0, session.id));
        self.changed = true;
    }
}

/// Pages of slots besides the record.
fn slot_pages(window: u64) -> usize {
    if window == 1 { 0 } else { window.div_ceil(SLOTS_PER_PAGE) as usize }
}

/// The result of an open: session id, window.
fn opened(id: SessionId, window: u64) -> Outcome {
    let mut result = [0; 16];
    result[..8].copy_from_slice(&id.0.to_le_bytes());
    result[8..].copy_from_slice(&window.to_le_bytes());
    Outcome::Done(Bytes::copy_from_slice(&result))
}
