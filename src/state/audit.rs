//! Whose each page is: what a service's own check of its state begins with.

use super::extent::Extent;
use super::map::Map;
use super::page::PageId;
use super::past::{Pages, Past};
use super::region::Region;

/// Accounts for every page of a region that is used through [`Cell`](super::Cell)s, [`Map`]s and [`Extent`]s alone.
///
/// ```
/// use castra::state::{Audit, Map, Region};
///
/// const NAMES: Map = Map::at(0);
/// let mut region = Region::new(16);
/// NAMES.insert(&mut region, b"a", &[7; 9_000])?;
/// let mut audit = Audit::new(&region);
/// assert_eq!(audit.map("names", NAMES), 5);
/// assert!(audit.finish().faults.is_empty());
/// # Ok::<(), castra::state::Full>(())
/// ```
#[derive(Debug)]
pub struct Audit<'a, P = Region> {
    region: &'a P,
    /// By page: which of `names` owns it, 0 for none.
    owners: Vec<u32>,
    names: Vec<String>,
    /// Every page must belong to something.
    whole: bool,
    report: AuditReport,
}

/// What an [`Audit`] found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AuditReport {
    /// Pages that belong to something.
    pub used: u64,
    /// Pages on the list of free ones.
    pub free: u64,
    /// One sentence for each fault, at most [`Audit::FAULTS_MAX`].
    pub faults: Vec<String>,
}

impl<'a> Audit<'a> {
    /// Faults that are told; more are not.
    pub const FAULTS_MAX: usize = 100;

    /// Begins with the directory, the free pages, and what is kept for snapshots.
    pub fn new(region: &'a Region) -> Audit<'a> {
        let mut audit = Audit::begin(region, region.pages(), true);
        let mut said = 0;
        audit.report.free = audit.own("the free list", |region, claim| said = region.visit_free(claim));
        if audit.report.free != u64::from(said) {
            audit.fault(format!("{} pages are free, and the directory counts {said}", audit.report.free));
        }
        let mut faults = Vec::new();
        let kept = audit.own("a snapshot", |region, claim| faults = region.visit_kept(claim));
        faults.into_iter().for_each(|fault| audit.fault(fault));
        audit.report.used += kept;
        audit
    }
}

impl<'a> Audit<'a, Past<'a>> {
    /// Of a region as it was. Which pages were free then is not kept: those that nothing owns are no fault.
    pub fn past(past: &'a Past<'a>) -> Audit<'a, Past<'a>> {
        Audit::begin(past, past.pages(), false)
    }
}

impl<'a, P: Pages> Audit<'a, P> {
    fn begin(region: &'a P, pages: u32, whole: bool) -> Audit<'a, P> {
        let report = AuditReport { used: 1, ..AuditReport::default() };
        let mut audit = Audit { region, owners: vec![0; pages as usize], names: vec![String::new()], whole, report };
        audit.own("the directory", |_, claim| {
            claim(PageId(0));
        });
        audit
    }

    /// Something is wrong.
    pub fn fault(&mut self, text: String) {
        if self.report.faults.len() < Audit::FAULTS_MAX {
            self.report.faults.push(text);
        }
    }

    /// What was found so far.
    pub fn faults(&self) -> &[String] {
        &self.report.faults
    }

    /// The pages of a map belong to `name`; how many they are.
    pub fn map(&mut self, name: &str, map: Map) -> u64 {
        let pages = self.own(name, |region, claim| map.visit(region, claim));
        self.report.used += pages;
        pages
    }

    /// The pages of an extent belong to `name`; how many they are.
    pub fn extent(&mut self, name: &str, extent: &Extent) -> u64 {
        let pages = self.own(name, |region, claim| extent.visit(region, claim));
        self.report.used += pages;
        pages
    }

    /// What was found; pages that nothing owns are faults too.
    pub fn finish(mut self) -> AuditReport {
        let ownerless = |owners: &[u32], page: usize| self.whole && owners[page] == 0;
        for page in (0..self.owners.len()).filter(|&page| ownerless(&self.owners, page)).collect::<Vec<_>>() {
            self.fault(format!("page {page} belongs to nothing and is not free"));
        }
        self.report
    }

    /// Marks what `visit` claims as `name`'s. A page that cannot be claimed is not looked into: no way leads in circles.
    fn own(&mut self, name: &str, visit: impl FnOnce(&P, &mut dyn FnMut(PageId) -> bool)) -> u64 {
        let owner = self.names.len() as u32;
        self.names.push(name.to_owned());
        let (mut pages, mut faults) = (0, Vec::new());
        let Audit { region, owners, names, .. } = self;
        visit(region, &mut |page| match owners.get_mut(page.index()) {
            Some(free @ 0) => {
                *free = owner;
                pages += 1;
                true
            }
            Some(other) => {
                faults.push(format!("page {} belongs to {} and to {name}", page.0, names[*other as usize]));
                false
            }
            None => {
                faults.push(format!("{name} has page {}, which is beyond the end", page.0));
                false
            }
        });
        faults.into_iter().for_each(|fault| self.fault(fault));
        pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Map = Map::at(0);

    #[test]
    fn every_page_is_owned_once() {
        let mut region = Region::new(100);
        let mut extent = Extent::default();
        extent.write(&mut region, 0, &[1; 20_000]).unwrap();
        for key in 0..200u32 {
            NAMES.insert(&mut region, &key.to_be_bytes(), &[2; 50]).unwrap();
        }
        (0..150u32).for_each(|key| assert!(NAMES.remove(&mut region, &key.to_be_bytes())));
        let mut audit = Audit::new(&region);
        assert_eq!(audit.extent("extent", &extent), 6);
        audit.map("names", NAMES);
        let report = audit.finish();
        assert_eq!(report.faults, [""; 0]);
        assert_eq!(report.used + report.free, u64::from(region.pages()));
    }

    #[test]
    fn pages_that_nobody_or_two_own_are_named() {
        let mut region = Region::new(100);
        let mut extent = Extent::default();
        extent.write(&mut region, 0, &[1; 5_000]).unwrap();
        let mut audit = Audit::new(&region);
        audit.extent("one", &extent);
        audit.extent("two", &extent);
        assert_eq!(audit.finish().faults.len(), 1, "two cannot claim the index page, and looks no further");
        let lost = Audit::new(&region).finish().faults;
        assert_eq!(lost.len(), 3);
        assert_eq!(lost[0], "page 1 belongs to nothing and is not free");
    }

    #[test]
    fn a_long_extent_is_freed_in_steps() {
        let mut region = Region::new(5_000);
        let mut extent = Extent::default();
        for at in [0, 1 << 22, 1 << 23, 1 << 60] {
            extent.write(&mut region, at, &vec![3; 1 << 20]).unwrap();
        }
        let mut steps = 1;
        while !extent.free_some(&mut region, 100) {
            steps += 1;
            let mut audit = Audit::new(&region);
            audit.extent("what is left", &extent);
            assert_eq!(audit.finish().faults, [""; 0]);
        }
        assert!(steps > 10, "{steps}");
        assert_eq!(region.available(), 4_999);
        assert_eq!(Audit::new(&region).finish().faults, [""; 0]);
    }
}
