//! Samples of one figure.

use std::time::Duration;

/// Values of one figure, in the order in which they were measured.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// In milliseconds.
    pub(crate) fn push_time(&mut self, time: Duration) {
        self.push(milliseconds(time));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The middle one; the mean of both middle ones when their number is even.
    pub(crate) fn median(&self) -> Option<f64> {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            n if n % 2 == 1 => Some(sorted[middle]),
            _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        }
    }

    /// The smallest value that 95 of 100 do not exceed.
    pub(crate) fn p95(&self) -> Option<f64> {
        let sorted = self.sorted();
        let rank = (sorted.len() * 95).div_ceil(100);
        sorted.get(rank.checked_sub(1)?).copied()
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

impl From<f64> for Samples {
    fn from(value: f64) -> Self {
        Self(vec![value])
    }
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[f64], median: Option<f64>, p95: Option<f64>) {
        let samples = Samples(values.to_vec());
        assert_eq!((samples.median(), samples.p95()), (median, p95), "{values:?}");
    }

    #[test]
    fn medians_and_percentiles_are_those_of_the_sorted_values() {
        check(&[], None, None);
        check(&[3.0], Some(3.0), Some(3.0));
        check(&[4.0, 1.0, 3.0, 2.0], Some(2.5), Some(4.0));
        let hundred: Vec<f64> = (1..=100_u8).rev().map(f64::from).collect();
        check(&hundred, Some(50.5), Some(95.0));
    }
}
