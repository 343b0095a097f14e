"""PPO: rollout, rewards and advantages, losses, and the loop."""
