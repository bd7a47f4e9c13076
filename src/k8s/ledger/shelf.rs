//! Chunks that were read or written lately. They never change, and are named
//! by what they hold: nothing on the shelf can be out of date.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::codec::Seal;

/// Octets of all chunks on it.
const MOST_OCTETS: usize = 32 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shelf(Mutex<Places>);

#[derive(Debug, Default)]
struct Places {
    chunks: HashMap<Seal, (u64, Arc<[u8]>)>,
    octets: usize,
    clock: u64,
}

impl Shelf {
    pub(super) fn get(&self, name: Seal) -> Option<Arc<[u8]>> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.clock += 1;
        let now = places.clock;
        let (used, chunk) = places.chunks.get_mut(&name)?;
        *used = now;
        Some(Arc::clone(chunk))
    }

    /// Puts a chunk there; what was used least recently makes room.
    pub(super) fn put(&self, name: Seal, chunk: Arc<[u8]>) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if chunk.len() > MOST_OCTETS {
            return;
        }
        places.clock += 1;
        let now = places.clock;
        places.octets += chunk.len();
        if let Some((_, old)) = places.chunks.insert(name, (now, chunk)) {
            places.octets -= old.len();
        }
        while places.octets > MOST_OCTETS {
            let oldest = places.chunks.iter().min_by_key(|(_, (used, _))| *used).map(|(name, _)| *name);
            let Some(oldest) = oldest else { break };
            places.take(oldest);
        }
    }

    pub(super) fn remove(&self, name: Seal) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take(name);
    }
}

impl Places {
    fn take(&mut self, name: Seal) {
        if let Some((_, chunk)) = self.chunks.remove(&name) {
            self.octets -= chunk.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(number: u8) -> Seal {
        Seal([number; 16])
    }

    #[test]
    fn what_was_used_least_recently_makes_room() {
        let shelf = Shelf::default();
        let chunk: Arc<[u8]> = vec![0; MOST_OCTETS / 3].into();
        for number in 0..3 {
            shelf.put(seal(number), Arc::clone(&chunk));
        }
        assert!(shelf.get(seal(0)).is_some());
        shelf.put(seal(3), Arc::clone(&chunk));
        shelf.put(seal(3), Arc::clone(&chunk));
        let there: Vec<u8> = (0..4).filter(|number| shelf.get(seal(*number)).is_some()).collect();
        assert_eq!(there, [0, 2, 3]);
        shelf.put(seal(9), vec![0; MOST_OCTETS + 1].into());
        assert!(shelf.get(seal(9)).is_none() && shelf.get(seal(0)).is_some());
        shelf.remove(seal(0));
        assert!(shelf.get(seal(0)).is_none());
    }
}
