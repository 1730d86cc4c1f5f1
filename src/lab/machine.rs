//! On what a figure was measured.

use std::fs;
use std::thread;

/// This machine.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Machine {
    /// The processor, as it names itself.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
    /// Memory, GiB rounded.
    pub memory_gib: u64,
}

impl Machine {
    /// Looks around.
    pub fn here() -> Machine {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let memory_kib = field(&read("/proc/meminfo"), "MemTotal").and_then(|text| {
            let number = text.split_whitespace().next()?;
            number.parse::<u64>().ok()
        });
        Machine {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: thread::available_parallelism().map_or(1, usize::from),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            memory_gib: memory_kib.unwrap_or(0).div_ceil(1 << 20),
        }
    }

    /// In one line.
    pub fn line(&self) -> String {
        format!("{}, {} cores, {} GiB, Linux {}", self.cpu, self.cores, self.memory_gib, self.kernel)
    }
}

/// The value of the first line `name : value`.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_a_name_and_cores() {
        let machine = Machine::here();
        assert!(!machine.cpu.is_empty() && !machine.kernel.is_empty() && machine.cores > 0 && machine.memory_gib > 0);
        assert_eq!(field("a\t: x\nmodel name\t: Some CPU @ 2.0: GHz\n", "model name").unwrap(), "Some CPU @ 2.0: GHz");
        assert_eq!(field("", "model name"), None);
    }
}
