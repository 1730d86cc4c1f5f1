//! Tables whose names are never reused.

use std::marker::PhantomData;

use super::completion::{RequestId, Session};

/// What a [`Table`] calls its entries: generation and index.
pub(crate) trait Name: Copy {
    fn of(raw: u64) -> Self;
    fn raw(self) -> u64;
}

impl Name for RequestId {
    fn of(raw: u64) -> RequestId {
        RequestId(raw)
    }

    fn raw(self) -> u64 {
        self.0
    }
}

impl Name for Session {
    fn of(raw: u64) -> Session {
        Session(raw)
    }

    fn raw(self) -> u64 {
        self.0
    }
}

#[derive(Debug)]
pub(crate) struct Table<K, T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    len: usize,
    names: PhantomData<K>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    entry: Option<T>,
}

impl<K: Name, T> Table<K, T> {
    pub(crate) fn new() -> Table<K, T> {
        Table { slots: Vec::new(), free: Vec::new(), len: 0, names: PhantomData }
    }

    pub(crate) fn insert(&mut self, entry: T) -> K {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, entry: None });
            u32::try_from(self.slots.len() - 1).expect("sessions and windows are bounded")
        });
        let slot = &mut self.slots[index as usize];
        slot.entry = Some(entry);
        self.len += 1;
        name(slot.generation, index as usize)
    }

    pub(crate) fn get(&self, name: K) -> Option<&T> {
        let slot = self.slots.get(name.raw() as u32 as usize)?;
        slot.entry.as_ref().filter(|_| u64::from(slot.generation) == name.raw() >> 32)
    }

    pub(crate) fn get_mut(&mut self, name: K) -> Option<&mut T> {
        let slot = self.slots.get_mut(name.raw() as u32 as usize)?;
        slot.entry.as_mut().filter(|_| u64::from(slot.generation) == name.raw() >> 32)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (K, &mut T)> {
        self.slots
            .iter_mut()
            .enumerate()
            .filter_map(|(index, slot)| Some((name(slot.generation, index), slot.entry.as_mut()?)))
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.entry.as_ref())
    }

    pub(crate) fn remove(&mut self, name: K) -> Option<T> {
        let slot = self.slots.get_mut(name.raw() as u32 as usize)?;
        if u64::from(slot.generation) != name.raw() >> 32 {
            return None;
        }
        let entry = slot.entry.take()?;
        self.len -= 1;
        // A slot whose generations are used up is retired.
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            self.free.push(name.raw() as u32);
        }
        Some(entry)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

fn name<K: Name>(generation: u32, index: usize) -> K {
    K::of(u64::from(generation) << 32 | index as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_never_reused() {
        let mut table: Table<Session, &str> = Table::new();
        let (first, second) = (table.insert("first"), table.insert("second"));
        assert_eq!((table.remove(first), table.remove(first)), (Some("first"), None));
        let third = table.insert("third");
        assert_ne!(third, first);
        assert_eq!((table.get(first), table.get(third), table.len()), (None, Some(&"third"), 2));
        table.iter_mut().for_each(|(_, entry)| *entry = "changed");
        assert_eq!(table.get_mut(first), None);
        assert_eq!(table.get(second), Some(&"changed"));
        // A slot whose generations are used up holds nothing any more.
        table.slots[0].generation = u32::MAX;
        let last = Session(u64::from(u32::MAX) << 32);
        assert_eq!((table.remove(last), table.len()), (Some("changed"), 1));
        assert_ne!(table.insert("fourth").raw() as u32, 0);
    }
}
