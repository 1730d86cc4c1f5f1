//! What is open through a mount. NFS has no open files: one that is removed while it is open would be gone under the
//! program that reads it. So it gets another name instead, and is removed when it is closed: silly rename.

use std::collections::BTreeMap;

use crate::bfs::{Credentials, Handle};

/// What such names begin with.
const SILLY: &[u8] = b".castra-";

/// Files that are open.
#[derive(Default)]
pub struct Opened {
    next: u64,
    files: BTreeMap<u64, (u64, Credentials)>,
    nodes: BTreeMap<u64, Node>,
}

#[derive(Default)]
struct Node {
    count: u64,
    hidden: Option<Hidden>,
}

/// A file that was removed while it was open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hidden {
    /// Where it is.
    pub directory: Handle,
    /// Its name until it is closed.
    pub name: Vec<u8>,
    /// Who removed it.
    pub cred: Credentials,
}

impl Opened {
    /// The file that the kernel knows as `node` is opened by this caller; the number of the opening.
    pub fn open(&mut self, node: u64, cred: Credentials) -> u64 {
        self.next += 1;
        self.files.insert(self.next, (node, cred));
        self.nodes.entry(node).or_default().count += 1;
        self.next
    }

    /// Who opened it.
    pub fn opener(&self, opening: u64) -> Option<&Credentials> {
        self.files.get(&opening).map(|(_, cred)| cred)
    }

    /// One opening less; what is to be removed now.
    pub fn close(&mut self, opening: u64) -> Option<Hidden> {
        let (node, _) = self.files.remove(&opening)?;
        let found = self.nodes.get_mut(&node)?;
        found.count -= 1;
        if found.count > 0 {
            return None;
        }
        self.nodes.remove(&node)?.hidden
    }

    /// Whether the file is open, and has a name other than for that.
    pub fn is_open(&self, node: u64) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.hidden.is_none())
    }

    /// Whether the file was removed while it was open.
    pub fn is_hidden(&self, node: u64) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.hidden.is_some())
    }

    /// A name for a file that is removed while it is open: `tag` keeps those of different mounts apart.
    pub fn silly_name(node: u64, tag: u64) -> Vec<u8> {
        [SILLY, format!("{node:x}-{tag:016x}").as_bytes()].concat()
    }

    /// The file has that name now. It is to be removed at once if it was closed meanwhile: then it comes back.
    pub fn hide(&mut self, node: u64, hidden: Hidden) -> Option<Hidden> {
        match self.nodes.get_mut(&node) {
            Some(node) => {
                node.hidden = Some(hidden);
                None
            }
            None => Some(hidden),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_close_removes_what_is_hidden() {
        let mut opened = Opened::default();
        let (a, b) = (opened.open(7, Credentials::ROOT), opened.open(7, Credentials::new(1, 1, &[])));
        assert!(opened.is_open(7) && !opened.is_hidden(7) && !opened.is_open(8));
        assert_eq!(opened.opener(b).unwrap().uid, 1);
        let hidden = Hidden { directory: Handle::ROOT, name: Opened::silly_name(7, 1), cred: Credentials::ROOT };
        assert_eq!(opened.hide(7, hidden.clone()), None);
        assert!(opened.is_hidden(7) && !opened.is_open(7));
        assert_eq!(opened.close(a), None);
        assert_eq!(opened.close(b), Some(hidden.clone()));
        assert_eq!(opened.close(b), None);
        assert_eq!(opened.hide(7, hidden.clone()), Some(hidden), "nobody has it open any more");
    }
}
