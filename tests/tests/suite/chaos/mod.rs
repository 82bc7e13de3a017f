//! Faults on a real Kafka: what dies, hangs, wakes up again or lies.

mod broker_kill;
mod conformance;
mod shutdown;
mod supervised;
mod zombie;
