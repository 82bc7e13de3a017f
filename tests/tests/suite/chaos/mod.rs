//! Faults: what the topics hold doesn't depend on when a process dies, nor on which version ran before.

mod kills;
mod upgrade;
