//! What processes cost, by `/proc`.

use std::fs;
use std::io;
use std::time::Duration;

/// CPU time of all threads of process `pid` that live, in nanoseconds of the scheduler's clock. Threads that ended are
/// not in it: compare readings of processes that keep theirs.
///
/// # Errors
/// The system's, if there is no such process.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the two; its time is lost to us either way.
        if let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) {
            total += text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
        }
    }
    match total {
        0 => clock_ticks(pid),
        total => Ok(Duration::from_nanos(total)),
    }
}

/// The same from `/proc/PID/stat`, in hundredths of a second: for kernels without scheduler statistics.
fn clock_ticks(pid: u32) -> io::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything; times are fields 14 and 15, the 12th and 13th after it.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = rest.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum::<u64>();
    // USER_HZ: 100 on every architecture that we know of.
    Ok(Duration::from_millis(ticks * 10))
}

/// Resident memory of process `pid`, in bytes.
///
/// # Errors
/// The system's, if there is no such process.
pub fn resident_bytes(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    Ok(line.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0) * 1_024)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn work_shows() {
        let me = std::process::id();
        let before = (cpu_time(me).unwrap(), clock_ticks(me).unwrap());
        let until = Instant::now() + Duration::from_secs(30);
        let used = |(fine, coarse): (Duration, Duration)| {
            cpu_time(me).unwrap().saturating_sub(fine) >= Duration::from_millis(20)
                && clock_ticks(me).unwrap().saturating_sub(coarse) >= Duration::from_millis(20)
        };
        while !used(before) {
            assert!(Instant::now() < until, "a busy loop uses no CPU");
        }
        assert!(resident_bytes(me).unwrap() > 1 << 20);
        assert!(cpu_time(u32::MAX).is_err() && resident_bytes(u32::MAX).is_err());
    }
}
