//! What timers can do while no vCPU runs.
//!
//! No instruction changes a device's registers then, so what comes of a timer's firing follows from the state of the
//! interrupt controllers, and is found by trying. A timer that leaves them as they are, and asks nothing of a
//! vCPU, does so for ever unless another timer changes them. What they keep can only become more, so after some
//! jumps either a vCPU wakes or no timer has an effect any more: then the machine sleeps for ever.
//!
//! A timer that does more than to drive a line (that completes a request in guest memory, for instance) always has an
//! effect: its device offers no [`Trial`](super::device::Trial).

use super::board::{Board, Seen};
use super::device::Device;
use super::interrupts::Interrupts;
use super::signal::Signal;

/// A timer that is set.
#[derive(Clone, Copy)]
struct Timer {
    at: u64,
    /// Number of the device.
    device: usize,
    /// Which of its timers; `None` if they cannot be tried out.
    index: Option<usize>,
}

/// What firing a timer changes.
struct Before {
    interrupts: Interrupts,
    /// The device, if it is no interrupt controller.
    device: Option<Box<dyn Device>>,
    seen: Seen,
    deadline: Option<u64>,
    signals: Vec<Signal>,
}

impl Board {
    /// The time of the next timer that changes an interrupt controller, or has the board send a signal that
    /// `acts` on a vCPU, as long as no vCPU touches a device. `None` if that will never happen again.
    pub fn next_effect(&mut self, acts: &dyn Fn(&Signal) -> bool) -> Option<u64> {
        let mut timers: Vec<Timer> = Vec::new();
        for device in self.bus.others().chain(0..self.bus.interrupts.count()) {
            let next = self.bus.device(device).next_deadline();
            let mut add = |deadline: Option<u64>, index| {
                timers.extend(deadline.map(|at| Timer { at, device, index }));
            };
            match self.bus.device_mut(device).trial() {
                None => add(next, None),
                Some(trial) => {
                    for (index, deadline) in trial.deadlines().into_iter().enumerate() {
                        add(deadline, Some(index));
                    }
                }
            }
        }
        timers.sort_by_key(|timer| timer.at);
        timers
            .into_iter()
            .find(|&timer| self.has_effect(timer, acts))
            .map(|timer| timer.at)
    }

    /// Lets time pass up to just before `at`, the time of the next timer with an effect. The others may fire
    /// many times until then.
    pub fn pass_until(&mut self, at: u64) {
        for device in self.bus.others() {
            if self.seen_deadline(device).is_some_and(|next| next < at) {
                if let Some(trial) = self.bus.device_mut(device).trial() {
                    trial.pass(at - 1);
                    self.after_firing(device);
                }
            }
        }
    }

    /// Whether firing a timer changes an interrupt controller or acts on a vCPU. All is then as before.
    fn has_effect(&mut self, timer: Timer, acts: &dyn Fn(&Signal) -> bool) -> bool {
        let Some(index) = timer.index else {
            return true;
        };
        let before = self.keep(timer.device);
        let mut next = Some(timer.at);
        let firings = self.trial(timer.device).map_or(0, |trial| trial.firings());
        for _ in 0..firings {
            let Some(at) = next else { break };
            if let Some(trial) = self.bus.device_mut(timer.device).trial() {
                trial.fire(index, at);
            }
            self.after_firing(timer.device);
            next = self.bus.device(timer.device).next_deadline();
        }
        let acted = self.out.signals.iter().any(acts);
        let same = self.bus.interrupts.differ_only_in_time(&before.interrupts);
        self.put_back(timer.device, before);
        acted || !same
    }

    fn trial(&mut self, device: usize) -> Option<&mut dyn super::device::Trial> {
        self.bus.device_mut(device).trial()
    }

    fn keep(&mut self, device: usize) -> Before {
        let controller = device < self.bus.interrupts.count();
        let copy = match self.trial(device) {
            Some(trial) if !controller => Some(trial.copy()),
            _ => None,
        };
        Before {
            interrupts: self.bus.interrupts.clone(),
            device: copy,
            seen: self.seen[device],
            deadline: self.deadline,
            signals: std::mem::take(&mut self.out.signals),
        }
    }

    fn put_back(&mut self, device: usize, before: Before) {
        self.bus.interrupts = before.interrupts;
        if let Some(copy) = before.device {
            self.bus.replace(device, copy);
        }
        self.seen[device] = before.seen;
        self.deadline = before.deadline;
        self.out.signals = before.signals;
    }
}

#[cfg(test)]
#[path = "idle_tests.rs"]
mod tests;
