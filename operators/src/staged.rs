//! Hangs a stateful step into a timely dataflow: one call an epoch, in epoch order, when all input
//! of the epoch is there.
//!
//! An operator with several inputs takes one enum of them: the streams are mapped into it and
//! concatenated, and each variant says to which worker it goes. Changes reach the step in an order
//! that depends on the workers; a step whose result would depend on it sorts first.

use crate::{Changes, Epoch};
use differential_dataflow::{AsCollection, ExchangeData, VecCollection};
use std::collections::BTreeMap;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator;

/// Runs `step(epoch, changes, out)` for every epoch with input, in order.
///
/// * `route` names the worker of a datum by a hash or, for broadcast copies, by its index.
/// * The output carries the epoch as its time; `out` need not be consolidated.
/// * Memory: the input of epochs that aren't complete yet, beside the step's own state.
pub fn staged<'s, I, O>(
    input: VecCollection<'s, Epoch, I, isize>,
    name: &str,
    route: impl Fn(&I) -> u64 + 'static,
    mut step: impl FnMut(Epoch, Changes<I>, &mut Changes<O>) + 'static,
) -> VecCollection<'s, Epoch, O, isize>
where
    I: ExchangeData,
    O: ExchangeData,
{
    input
        .inner
        .unary_frontier(Exchange::new(move |(data, _, _): &(I, Epoch, isize)| route(data)), name, |_, _| {
            let mut waiting: BTreeMap<Epoch, (Capability<Epoch>, Changes<I>)> = BTreeMap::new();
            let mut out = Changes::new();
            move |(input, frontier), output| {
                input.for_each(|capability, data| {
                    for (datum, epoch, diff) in data.drain(..) {
                        waiting
                            .entry(epoch)
                            .or_insert_with(|| (capability.delayed(&epoch, 0), Changes::new()))
                            .1
                            .push((datum, diff));
                    }
                });
                while let Some(entry) = waiting.first_entry() {
                    if frontier.less_equal(entry.key()) {
                        break;
                    }
                    let (epoch, (capability, changes)) = entry.remove_entry();
                    step(epoch, changes, &mut out);
                    output
                        .session(&capability)
                        .give_iterator(out.drain(..).map(|(datum, diff)| (datum, epoch, diff)));
                }
            }
        })
        .as_collection()
}

/// A copy of every change for each of `peers` workers, with the worker's index.
pub fn broadcast<'s, D: ExchangeData>(
    input: VecCollection<'s, Epoch, D, isize>,
    peers: usize,
) -> VecCollection<'s, Epoch, (u64, D), isize> {
    input.flat_map(move |datum| (0..peers as u64).map(move |worker| (worker, datum.clone())))
}

/// A stable hash of an id, the same in every version: routes users, items and keys to workers.
pub fn route(id: &str) -> u64 {
    // FNV-1a, then a finaliser so that the low bits that choose a worker depend on every byte.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in id.as_bytes() {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}
