from sb3_hrl.zoo.cli import main

main()
