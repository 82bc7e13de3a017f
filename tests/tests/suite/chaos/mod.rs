//! Faults: what dies, hangs, wakes up again or lies; what the topics hold doesn't depend on it, nor on
//! which version ran before.

mod broker_kill;
mod conformance;
mod disorder;
mod kills;
mod points;
mod shutdown;
mod simulation;
mod supervised;
mod truncation;
mod undisturbed;
mod upgrade;
mod zombie;
