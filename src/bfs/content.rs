//! The content of regular files, and long targets of symbolic links.

use super::inode::Inode;
use super::status::Status;
use super::table::{self, FREED_PER_CALL};
use crate::state::{Extent, Region};

/// The most bytes of one READ or WRITE: rtmax and wtmax.
pub const TRANSFER_MAX: u32 = 64 * 1024;

/// The largest file: what a signed offset reaches.
pub const FILE_MAX: u64 = i64::MAX as u64;

const _: () = assert!(TRANSFER_MAX as usize + 4_096 <= crate::limits::OPERATION_MAX, "a transfer fits an operation");

/// Does something to the content, and keeps count of its pages.
fn counted(
    region: &mut Region,
    inode: &mut Inode,
    change: impl FnOnce(&mut Region, &mut Extent) -> Result<(), Status>,
) -> Result<(), Status> {
    let before = region.balance();
    change(region, &mut inode.content)?;
    let taken = region.balance() - before;
    inode.pages = inode.pages.checked_add_signed(taken).expect("no page is given back that was not counted");
    Ok(())
}

/// Overwrites bytes, and extends the file if they reach beyond its end. To be attempted.
pub(super) fn write(region: &mut Region, inode: &mut Inode, offset: u64, data: &[u8]) -> Result<(), Status> {
    match offset.checked_add(data.len() as u64) {
        Some(end) if end <= FILE_MAX => {}
        _ => return Err(Status::FBig),
    }
    counted(region, inode, |region, content| Ok(content.write(region, offset, data)?))
}

/// Sets the length. To be attempted.
///
/// Its work is bounded where a long file is emptied; else it grows with the pages that are cut off.
pub(super) fn resize(region: &mut Region, inode: &mut Inode, len: u64) -> Result<(), Status> {
    if len > FILE_MAX {
        return Err(Status::FBig);
    }
    if len == 0 && inode.pages > FREED_PER_CALL.into() && table::give_up(region, inode.content, inode.pages) {
        (inode.content, inode.pages) = (Extent::default(), 0);
        return Ok(());
    }
    counted(region, inode, |region, content| Ok(content.resize(region, len)?))
}
