"""How good the trained models are: accuracy, win rate, KL and the statistics behind them."""
