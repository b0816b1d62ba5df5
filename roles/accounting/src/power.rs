//! Energy, and where the figure comes from.
//!
//! Nothing here asks a device or a meter: readings come in, sums come out. Unknown stays unknown: where no reading
//! covers a time, no energy is counted, and the work of that time is not part of any efficiency.

use stratum::Work;

/// Where a power figure comes from, best first: where several speak for one device, the best one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PowerSource {
    /// A meter in the supply line.
    Meter,
    /// The device says so itself.
    Device,
    /// Somebody's estimate.
    Estimate,
    /// What the maker prints on the model.
    Nameplate,
}

impl PowerSource {
    /// All sources, for those who count by them.
    pub const ALL: [PowerSource; 4] =
        [PowerSource::Meter, PowerSource::Device, PowerSource::Estimate, PowerSource::Nameplate];

    /// The name in metrics, summaries and the API.
    pub const fn name(self) -> &'static str {
        match self {
            PowerSource::Meter => "meter",
            PowerSource::Device => "device",
            PowerSource::Estimate => "estimate",
            PowerSource::Nameplate => "nameplate",
        }
    }

    /// The source of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        PowerSource::ALL.into_iter().find(|source| source.name() == name)
    }
}

/// Energy over some time, and the work that was proved while it was known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnergySums {
    /// Millijoules, in the order of [`PowerSource::ALL`]. Wide, because a gigawatt fills 64 bits in half a year.
    pub millijoules: [u128; PowerSource::ALL.len()],
    /// The accepted work of the devices and times that these cover: what efficiency divides by.
    pub covered_work: Work,
}

impl EnergySums {
    /// Adds other sums.
    pub fn add(&mut self, other: &EnergySums) {
        self.millijoules.iter_mut().zip(other.millijoules).for_each(|(sum, energy)| *sum += energy);
        self.covered_work += other.covered_work;
    }

    /// Takes earlier sums of the same subject out of these; what would be below zero is zero.
    pub fn subtract(&mut self, earlier: &EnergySums) {
        let sums = self.millijoules.iter_mut().zip(earlier.millijoules);
        sums.for_each(|(sum, energy)| *sum = sum.saturating_sub(energy));
        self.covered_work.0 = self.covered_work.0.saturating_sub(earlier.covered_work.0);
    }

    /// All energy in joules, whatever its source.
    pub fn joules(&self) -> f64 {
        self.millijoules.iter().sum::<u128>() as f64 / 1000.0
    }

    /// Joules for each terahash that was proved meanwhile (J/TH); `None` while no energy or no work is known.
    pub fn joules_per_terahash(&self) -> Option<f64> {
        let terahashes = self.covered_work.0 as f64 / 1e12;
        let joules = self.joules();
        (joules > 0.0 && terahashes > 0.0).then(|| joules / terahashes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn efficiency_divides_sums_and_knows_nothing_of_what_is_not_covered() {
        let mut sums = EnergySums::default();
        assert_eq!(sums.joules_per_terahash(), None);
        // 17.5 J/TH and 30 J/TH, the second with half the work: 21.67 and not 23.75.
        sums.add(&EnergySums { millijoules: [0, 3_500_000, 0, 0], covered_work: Work(200_000_000_000_000) });
        sums.add(&EnergySums { millijoules: [0, 0, 0, 3_000_000], covered_work: Work(100_000_000_000_000) });
        let efficiency = sums.joules_per_terahash().expect("both are known");
        assert!((efficiency - 6500.0 / 300.0).abs() < 1e-9, "{efficiency}");
    }
}
