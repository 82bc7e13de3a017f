//! Faults: what the topics hold doesn't depend on when a process dies.

mod kills;
