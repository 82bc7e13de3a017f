//! Which machine this is, for figures that depend on it: times, and the last bits of what is trained. Linux
//! names its processor; elsewhere the architecture stands for it.

/// The processor's name.
pub fn cpu() -> String {
    let facts = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut names = facts.lines().filter_map(|line| line.strip_prefix("model name")?.split_once(':'));
    names.next().map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// The processor and the cores that this process may use.
pub fn here() -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!("{}, {cores} {}", cpu(), if cores == 1 { "core" } else { "cores" })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_machine_has_a_name_and_cores() {
        let here = super::here();
        assert!(here.len() > " 1 core".len() && here.contains(" core"), "{here}");
        assert_eq!(here, super::here());
    }
}
