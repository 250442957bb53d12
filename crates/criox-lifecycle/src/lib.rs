//! Pods and containers: one task per pod, joinable operations, recovery, events.
